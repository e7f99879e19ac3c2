# SPDX-License-Identifier: MIT
"""The model's two tokenizers: made from captions, written as FLUX.1's are, and applied.

T5's is a SentencePiece unigram model in which capitals stay letters of their own, so that a word on
a sign is spelled out; CLIP's a byte-level BPE.
"""
import collections
import json
import os
import re
import string

import sentencepiece

import scenes
import shapes

CAPTIONS = 60000
MERGES = 318
CLIP_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+")
START, END = '<|startoftext|>', '<|endoftext|>'
OTHERS = string.ascii_letters + string.digits + '.,:;!?-+/&%#*=@_"\'()'


def _byte_letters():
    """The letter that stands for each byte: itself if it can be printed, else one from U+0100."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, free = {}, 256
    for byte in range(256):
        letters[byte] = chr(byte if byte in plain else free)
        free += byte not in plain
    # Those that are themselves come first, as in CLIP's own vocabulary.
    return {byte: letters[byte] for byte in plain + [b for b in range(256) if b not in plain]}


def captions(count=CAPTIONS):
    sampler, speaker = scenes.Sampler('vocabulary'), scenes.Speaker('vocabulary')
    return [speaker.caption(sampler.scene()) for _ in range(count)]


def _spelled(caption):
    """With blanks around each capital."""
    return re.sub('([A-Z])', r' \1 ', caption)


def make_t5(texts, folder):
    lines = [_spelled(text) for text in texts] + [letter for letter in OTHERS for _ in range(40)]
    # A word becomes a piece only if the trainer has seen it end in several ways.
    lines += [f'{word}, {word}. {word}' for text in texts[:5000] for word in set(text.split())
              if word.isalpha() and word.islower()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=f'{folder}/spiece', model_type='unigram',
        vocab_size=shapes.T5['vocab_size'], hard_vocab_limit=False, character_coverage=1.,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name='nmt_nfkc',
        num_threads=1, minloglevel=2)
    os.remove(f'{folder}/spiece.vocab')


def _merged(symbols, pair):
    result, i = [], 0
    while i < len(symbols):
        both = tuple(symbols[i:i + 2]) == pair
        result.append(symbols[i] + symbols[i + 1] if both else symbols[i])
        i += 2 if both else 1
    return result


def _symbols(word, letters):
    symbols = [letters[byte] for byte in word.encode()]
    return symbols[:-1] + [symbols[-1] + '</w>']


def make_clip(texts, folder):
    letters = _byte_letters()
    counts = collections.Counter(word for text in texts for word in CLIP_WORD.findall(text.lower()))
    words = {word: _symbols(word, letters) for word in counts}
    merges = []
    while len(merges) < MERGES:
        pairs = collections.Counter()
        for word, symbols in words.items():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {word: _merged(symbols, best) for word, symbols in words.items()}
    tokens = [*letters.values(), *(letter + '</w>' for letter in letters.values()),
              *(a + b for a, b in merges)]
    tokens = list(dict.fromkeys(tokens))
    tokens += [f'<unused{i}>' for i in range(shapes.CLIP['vocab_size'] - 2 - len(tokens))]
    tokens = tokens[:shapes.CLIP['vocab_size'] - 2] + [START, END]
    kept = [pair for pair in merges if pair[0] + pair[1] in set(tokens)]
    with open(f'{folder}/vocab.json', 'w') as file:
        json.dump({token: i for i, token in enumerate(tokens)}, file, ensure_ascii=False)
    with open(f'{folder}/merges.txt', 'w') as file:
        file.write('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in kept))


def _write_config(folder, **config):
    with open(f'{folder}/tokenizer_config.json', 'w') as file:
        json.dump(config, file, indent=1)
        file.write('\n')


def make(folder):
    """Writes tokenizer/ and tokenizer_2/ into a checkpoint's folder."""
    for name in ('tokenizer', 'tokenizer_2'):
        os.makedirs(f'{folder}/{name}', exist_ok=True)
    texts = captions()
    make_t5(texts, f'{folder}/tokenizer_2')
    make_clip(texts, f'{folder}/tokenizer')
    _write_config(f'{folder}/tokenizer', tokenizer_class='CLIPTokenizer',
                  model_max_length=shapes.CLIP_TOKENS, bos_token=START, eos_token=END,
                  pad_token=END, unk_token=END)
    _write_config(f'{folder}/tokenizer_2', tokenizer_class='T5Tokenizer',
                  model_max_length=shapes.T5_TOKENS, eos_token='</s>', pad_token='<pad>',
                  unk_token='<unk>', extra_ids=0)


class Tokenizers:
    """Both, read from a checkpoint's folder. For captions: not every text that CLIP would take."""

    def __init__(self, folder):
        self.t5_model = sentencepiece.SentencePieceProcessor(
            model_file=f'{folder}/tokenizer_2/spiece.model')
        with open(f'{folder}/tokenizer/vocab.json') as file:
            self.vocabulary = json.load(file)
        with open(f'{folder}/tokenizer/merges.txt') as file:
            merges = [tuple(line.split()) for line in file.read().splitlines()[1:]]
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.letters = _byte_letters()
        self.known = {}

    def t5(self, text):
        ids = self.t5_model.encode(text)[:shapes.T5_TOKENS - 1] + [1]
        return ids + [0] * (shapes.T5_TOKENS - len(ids))

    def _word(self, word):
        if word not in self.known:
            symbols = _symbols(word, self.letters)
            while len(symbols) > 1:
                pair = min(zip(symbols, symbols[1:]),
                           key=lambda pair: self.ranks.get(pair, len(self.ranks)))
                if pair not in self.ranks:
                    break
                symbols = _merged(symbols, pair)
            self.known[word] = [self.vocabulary[symbol] for symbol in symbols]
        return self.known[word]

    def clip(self, text):
        ids = [i for word in CLIP_WORD.findall(text.lower()) for i in self._word(word)]
        ids = [self.vocabulary[START], *ids[:shapes.CLIP_TOKENS - 2], self.vocabulary[END]]
        return ids + [self.vocabulary[END]] * (shapes.CLIP_TOKENS - len(ids))
