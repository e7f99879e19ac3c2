# SPDX-License-Identifier: MIT
"""The world of the embedded model: what is held out, and a judge that sees what was painted."""
import os
import sys
import unittest
import unittest.mock

sys.path.insert(0, os.environ['TRAINING'])
try:
    import numpy as np
    from PIL import Image
except ImportError as error:
    print(f'skipped: {error}')
    sys.exit(77)
import draw
import judge
import quality
import scenes
from verdict import verdict


def look(scene, width=256, height=256):
    picture = draw.render(scenes.row(scene, width, height)[None], width, height)[0]
    return judge.look((picture.transpose(1, 2, 0) * 255 + .5).astype(np.uint8))


def sign(word):
    return scenes.Scene('sign', None, 'plain', ('blue', 'red'), sign=scenes.Sign(word))


class World(unittest.TestCase):
    def test_training_never_sees_what_is_held_out(self):
        trained, held_out = scenes.Sampler(1), scenes.Sampler(2, held_out=True)
        seen = {}
        for name, sampler in (('trained', trained), ('held out', held_out)):
            made = [sampler.scene() for _ in range(2000)]
            whats = {(thing.colour, thing.shape, scene.where) for scene in made
                     if scene.layout == 'one' for thing in scene.things}
            seen[name] = whats | {scene.sign.word for scene in made if scene.sign}
            self.assertGreater(len(seen[name]), 90)
        self.assertFalse(seen['trained'] & seen['held out'])

    def test_a_seed_is_a_world(self):
        def told(seed):
            sampler, speaker = scenes.Sampler(seed), scenes.Speaker(seed)
            return [speaker.caption(sampler.scene()) for _ in range(50)]
        self.assertEqual(told(3), told(3))
        self.assertNotEqual(told(3), told(4))

    def test_a_caption_names_everything(self):
        sampler, speaker = scenes.Sampler(5), scenes.Speaker(5, plain=True)
        for _ in range(300):
            scene = sampler.scene()
            caption = speaker.caption(scene)
            for thing in scene.things:
                for word in (thing.colour, thing.shape, thing.size, thing.style):
                    self.assertIn(word, caption)
            if scene.sign:
                self.assertIn(f' {scene.sign.word}', caption)
            if scene.light:
                self.assertIn(f'lit from the {scene.light}', caption)

    def test_windows_are_cut_from_the_whole(self):
        row = scenes.row(scenes.Sampler(6).scene(), 256, 192)[None]
        whole = draw.render(row, 256, 192)
        part = draw.render(row, 256, 192, np.array([[50, 20]]), 128)
        self.assertLess(np.abs(part - whole[:, :, 20:148, 50:178]).max(), 1e-3)

    def test_labels_say_what_is_there(self):
        scene = scenes.Scene('one', None, 'plain', ('white', 'white'),
                             [scenes.Thing('red', 'square', radius=.5)])
        labels = draw.labels(scenes.row(scene, 256, 256)[None], 256, 256)[0]
        self.assertEqual(labels[8, 8].tolist(), [2, 1, 0])
        self.assertEqual(labels[0, 0].tolist(), [0, 0, 0])
        scene = scenes.Scene('sign', None, 'plain', ('blue', 'blue'), sign=scenes.Sign('CAT'))
        labels = draw.labels(scenes.row(scene, 256, 256)[None], 256, 256)[0]
        spelled = [chr(ord('A') + letter - 1) for letter in labels[8, :, 2] if letter]
        self.assertEqual(list(dict.fromkeys(spelled)), ['C', 'A', 'T'])


class Judge(unittest.TestCase):
    def test_sees_what_was_painted(self):
        tests = quality.held_out_scenes(150)
        results = quality.judge_all(tests, (quality.painted_by_hand(scene) for scene, _ in tests))
        wrong = [(caption, [name for name, is_right in right.items() if not is_right])
                 for (_, caption), (_, right) in zip(tests, results) if not all(right.values())]
        self.assertLessEqual(len(wrong), .02 * len(tests), wrong)

    def test_sees_through_blur(self):
        sampler = scenes.Sampler('blur', layouts={'one': 1, 'two': 1})
        right = []
        for _ in range(40):
            scene = sampler.scene()
            image = Image.fromarray(quality.painted_by_hand(scene))
            image = image.resize((192, 192), Image.BILINEAR).resize((256, 256), Image.BILINEAR)
            right.append(all(verdict(scene, judge.look(np.asarray(image))).values()))
        self.assertGreaterEqual(sum(right), 36)

    def test_sees_through_deep_shadows(self):
        sampler = scenes.Sampler('deep', layouts={'one': 1, 'two': 1})
        right = []
        with unittest.mock.patch.object(draw, 'SHADOW', .57):
            painted = [(scene, quality.painted_by_hand(scene))
                       for scene in (sampler.scene() for _ in range(40))]
        for scene, picture in painted:
            right.append(all(verdict(scene, judge.look(picture)).values()))
        self.assertGreaterEqual(sum(right), 36)

    def test_is_no_yes_man(self):
        sampler = scenes.Sampler('other', layouts={'one': 1, 'two': 1})
        made = [sampler.scene() for _ in range(30)]
        agreed = [all(verdict(told, look(shown)).values()) for told, shown in zip(made, made[2:])]
        self.assertLessEqual(sum(agreed), 1)

    def test_other_sizes(self):
        sampler = scenes.Sampler('sizes')
        right = []
        for width, height in scenes.SIZES_PX * 2:
            scene = sampler.scene()
            right.append(all(verdict(scene, look(scene, width, height)).values()))
        self.assertGreaterEqual(sum(right), len(right) - 1)

    def test_reads(self):
        for word in ('ABCDEF', 'GHIJKL', 'MNOPQR', 'STUVWX', 'YZ', 'OQDCGU'):
            for size in (192, 256, 384):
                self.assertEqual(look(sign(word), size, size).sign, word)

    def test_nothing_to_see(self):
        for value in (0, 128, 255):
            picture = judge.look(np.full((256, 256, 3), value, np.uint8))
            self.assertEqual((picture.things, picture.sign), ([], None))
        judge.look(np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8))


if __name__ == '__main__':
    unittest.main(verbosity=2)
