# SPDX-License-Identifier: MIT
"""Writes what transformers' tokenizers make of some hundreds of strings.

usage: token_ids.py REAL [OUT]

REAL: a folder with the vocabularies of the published model: vocab.json and merges.txt of CLIP-L,
spiece.model of T5 v1.1 (they are not part of the project). OUT: tests/golden/data/token_ids.json,
{"texts": [...], "sets": {"mini"|"real": {"clip": [[id, ...], ...], "clip_tokens": 77,
"t5": [[...], ...], "t5_tokens": 512}}}, ids without padding.
"""
import json
import os
import random
import shutil
import sys
import tempfile

from transformers import CLIPTokenizer, T5TokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
MINI = f'{HERE}/data/tokenizers'

PROMPTS = """a red fox
A Large Red Circle on a White Background
a photo of an astronaut riding a horse on mars, 35mm, f/1.8, bokeh
portrait of a woman, oil painting by Vermeer, soft light, 4k, highly detailed
a cat holding a sign that says "hello world"
a small Red star, above 2 blue-green moons!
it's the fox's den; they're sure we've seen what I'd said you'll want, I'm told
IT'S THE FOX'S DEN; THEY'RE SURE WE'VE SEEN WHAT I'D SAID YOU'LL WANT, I'M TOLD
rock'n'roll 'tis 'twas 'sup ''s '''ll 're-do
5 o'clock, 1234567890 3.14159 1,000,000 50% $9.99 #1 @home A&B 7x7 2nd 3rd
email me@example.com or visit https://example.com/path?q=1&r=2#top
semi;colon:colon-dash_underscore/slash\\backslash|pipe~tilde`tick^caret
(masterpiece:1.2), [best quality], {{sharp}}, <lora:film:0.8>, ((high contrast))
!!!!!!!!!! ????? ..... ----- ===== ***** ##### ,,,,, ;;;;; ::::: ((((( ))))) """.split('\n')

FOREIGN = """un café très élégant à Orléans, déjà vu, naïve, œuvre, garçon
Ein großes grünes Haus mit süßen Äpfeln, Straße, ÜBER, ẞ
el niño pequeño comió piñas en el jardín, ¿qué? ¡sí!
Århus Ørsted ærlig smørrebrød Þórður Ægir
Łódź żółć gęślą jaźń Dvořák Škoda čeština
Türkiye İstanbul ığdır IĞDIR İİ ıı
Việt Nam phở bò đặc biệt tiếng Việt Nguyễn
ΟΔΥΣΣΕΥΣ Οδυσσεύς ΣΑΣ ς σ άέήίόύώ
Красная лиса прыгает через забор, ёлка Ё Щука
Հայաստան საქართველო ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ
ثعلب أحمر يقفز فوق السياج، الْعَرَبِيَّة ٠١٢٣٤٥
שועל אדום קופץ מעל הגדר, שָׁלוֹם
लाल लोमड़ी बाड़ के ऊपर कूदती है क्षत्रिय १२३
ลิงสีแดงกระโดดข้ามรั้ว ๑๒๓
红色的狐狸跳过篱笆，一幅水墨画。
赤い狐が柵を飛び越える。ガギグゲゴ ｶﾞｷﾞ
빨간 여우가 울타리를 뛰어넘는다 각각
ꭰꭱ ᎠᎡ Ꭺꮃ 𐐀𐐨 𝔄𝔅ℭ 𝕳𝖊𝖑𝖑𝖔""".split('\n')

# NFC, NFKC and their traps: what has several spellings, composed and taken apart.
MARKS = ['e\u0301', 'é', 'E\u0301', 'cafe\u0301', 'caf\u00e9', 'A\u030a', '\u00c5', '\u212b',
         'e\u0302\u0301', 'ế', 'e\u0301\u0302', 'q\u0323\u0307', 'q\u0307\u0323', 'o\u0308\u0304',
         '\u1e9b\u0323', 'x\u0301\u0302\u0303\u0304\u0305', '\u0301', ' \u0301', 'a\u0301b\u0301',
         'I\u0307', 'i\u0307', 'İ', 'か\u3099', 'が', 'ﾊﾟ', '\u1112\u1161\u11ab', '한',
         'ﬁ', 'ﬁ\u0301', 'ﬀ ﬂ ﬃ ﬄ ﬆ', '½ ¼ ⅓ ⅞', 'x² y³ H₂O aⁿ', '① ② ⑩ ⓐ', 'Ⅷ ⅷ Ⅻ ↉', 'ⅧⅧ! a½½!', 'ｅ\u20d7x', 'ﬁ\u20d7x',
         '™ © ® ℃ ℉ № ℡', 'ＦＵＬＬ ｗｉｄｔｈ １２３', 'ﷺ', 'ǅ ǆ Ǆ', 'ŉ ǰ', 'ſtraſſe', 'µ μ',
         '\u0344 \u0958 \u2126 \uf900', '＜／ｓ＞', '＜ｐａｄ＞', '＜ｕｎｋ＞＜', '｜＞']

SIGNS = ['“quoted” ‘single’ «guillemets» „low“ ‹x›', "it’s a fox’s", 'em—dash en–dash minus−hyphen‐',
         'ellipsis… dots... ·•‣', '€ £ ¥ ₹ ₿ ¢', '≤ ≥ ≠ ≈ ± × ÷ ∞ ∑ √ π ∂', '→ ← ↑ ↓ ⇒ ⟶', '♥ ♦ ♣ ♠ ★ ☆ ✓ ✗',
         '«»“”‘’', '¿¡', '§¶†‡', '\u00ad soft\u00adhyphen', 'zero\u200bwidth\u200cnon\u200djoiner\u2060x',
         '\ufeffbom', 'left\u200eright\u200fmark \u202eoverride\u202c', 'variation\ufe0f \u2764\ufe0f',
         '▁', 'a▁b', '▁a', '▁▁a▁', ' ▁ ', '�', '\ue000\uf8ff', '\U000f0000', '\ufdd0 \uffff']

EMOJI = ['😀', '😀😀😀', 'a 😀 b', '👍🏽', '👩‍🚀', '👨‍👩‍👧‍👦 family', '🇩🇪🇫🇷', '🏳️‍🌈', '1️⃣', '🤖🎨 robot paints',
         '❤️‍🔥', '☀️🌧️', 'fox🦊fox', '🧑🏿‍🦰', '🫠']

SPACES = ['', ' ', '   ', '\t', '\n', '\r\n', ' a', 'a ', '  a  b  ', 'a\tb', 'a\nb', 'a\r\nb', 'a\x0bb', 'a\x0cb',
          'a\x85b', 'a\u00a0b', 'a\u1680b', 'a\u2000b\u2001c\u2002d\u2003e', 'a\u2004b\u2005c\u2006d\u2007e',
          'a\u2008b\u2009c\u200ad', 'a\u2028b', 'a\u2029b', 'a\u202fb', 'a\u205fb', 'a\u3000b', 'a\u180eb',
          '\u00a0', '\u3000\u3000', '\n\n\n a \n\n b', 'tab\t\ttab', 'a \u0301 b', '\u2003leading', 'trailing\u2003']

CONTROLS = [f'a{chr(c)}b' for c in list(range(1, 0x20)) + [0x7f, 0x80, 0x90, 0x9f]] + ['\x01', '\x1b[31mred\x1b[0m']

SPECIALS = ['</s>', 'a</s>b', '</s></s>', '<pad>', 'x <pad> y', '<unk>', 'hi<unk>there', '<s>', '<extra_id_0>',
            'a <extra_id_0> b <extra_id_99>', '<extra_id_100>', '<extra_id_01>', '<extra_id_-1>', '<extra_id_5', '</S>',
            '<|endoftext|>', '<|startoftext|>', 'a<|endoftext|>b', '<|startoftext|>a fox<|endoftext|>', 'a <|endoftext|>',
            '<|endoftext|><|endoftext|>', '<|ENDOFTEXT|>', '<|ENDOFTEXT|>!!', 'x<|StartOfText|>y', '!<|ENDOFTEXT|>',
            '<|endoftext', '<<|endoftext|>>', '<|endoftext|>\u0301', 'e<|endoftext|>\u0301', ' </s> ', '<', '<<<', '<|', '</']

LONG = ['a' * 200, 'hippopotomonstrosesquippedaliophobia pneumonoultramicroscopicsilicovolcanoconiosis',
        'Donaudampfschifffahrtsgesellschaftskapitän', '9' * 120, '!' * 100, '?' * 99, 'ha' * 60, '-=' * 50, '日' * 90, '😀' * 40,
        'a fox, ' * 90, 'word ' * 300, 'antidisestablishmentarianism' * 6, 'x' * 77 + ' ' + 'y' * 77, 'é' * 80, 'e\u0301' * 80,
        'A' * 24, 'AAAAaaaa' * 8, '********************', 'xoxoxoxoxoxoxo', 'zzzzzzzzzzzzzzzzzzzzzzz', '0000000000000000000']


def mixtures(count):
    """Strings of fragments that meddle with one another."""
    fragments = (['a', 'e', 'the', 'ing', 'ha', 'lo', 'Fox', 'RED', ' ', '  ', '\t', '\n', '.', '!', '?', '-', ',', '"', "'",
                  "'s", "'ll", '0', '1', '42', '=', '*'] + MARKS[:30] + SIGNS[:10] + EMOJI[:6] + SPACES[13:25] + SPECIALS[:20])
    rng = random.Random(7)
    return [''.join(rng.choice(fragments) * rng.choice([1, 1, 1, 2, 5]) for _ in range(rng.randint(2, 9)))
            for _ in range(count)]


def encode_all(texts, clip_folder, t5_folder, t5_tokens):
    clip, t5 = CLIPTokenizer.from_pretrained(clip_folder), T5TokenizerFast.from_pretrained(t5_folder)

    def ids(tokenizer, tokens):
        return [tokenizer(text, max_length=tokens, truncation=True).input_ids for text in texts]

    return dict(clip=ids(clip, 77), clip_tokens=77, t5=ids(t5, t5_tokens), t5_tokens=t5_tokens)


def main(real, out=f'{HERE}/data/token_ids.json'):
    texts = PROMPTS + FOREIGN + MARKS + SIGNS + EMOJI + SPACES + CONTROLS + SPECIALS + LONG + mixtures(140)
    with tempfile.TemporaryDirectory() as folder:
        for part, names in (('clip', ('vocab.json', 'merges.txt')), ('t5', ('spiece.model',))):
            os.mkdir(f'{folder}/{part}')
            for name in names:
                shutil.copy(f'{real}/{name}', f'{folder}/{part}')
        sets = dict(mini=encode_all(texts, f'{MINI}/tokenizer', f'{MINI}/tokenizer_2', 64),
                    real=encode_all(texts, f'{folder}/clip', f'{folder}/t5', 512))
    with open(out, 'w') as file:
        json.dump(dict(texts=texts, sets=sets), file, separators=(',', ':'))
        file.write('\n')
    print(f'{out}: {len(texts)} texts, {os.path.getsize(out)} bytes')


if __name__ == '__main__':
    main(*sys.argv[1:])
