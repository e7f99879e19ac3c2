#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Records what another program asks its allocator for: PyTorch, while diffusers' FluxPipeline makes
images of mixed sizes at FLUX.1-dev's shapes, with block-wise ("group") offload on a copy stream.

usage: record_pytorch.py OUT [--fake] [--images 50] [--steps 1] [--layers 2,4,3,2] [--seed 17]
                         [--tokenizers etc/mini] [--least]

Weights are random and every kind of layer is there at its full size; of each stack of equal layers
(double, single, T5, CLIP) only so many as --layers says, and --steps denoising steps, since memory
repeats from layer to layer and from step to step: with block-wise offload two layers are on the
device whatever their number. OUT is a trace as alloc/trace.h describes it, stream 0 computing,
stream 1 copying, a mark after each image.

On a GPU two processes run side by side, one for each policy of PyTorch's allocator (default and
expandable segments). Both record with torch.cuda.memory._record_memory_history, libraries'
workspaces included; OUT is what the first one did. Both report what PyTorch says of itself: peaks
requested and reserved, fragmentation after images, and with --least how many images fail when the
limit (set_per_process_memory_fraction) is 110 % of the peak requested, and the least under which
none does, to 16 MiB. The figures are printed and stand at the head of OUT, which is written anew
with each, so that a run cut short leaves what it has found.

With --fake no GPU is needed and nothing is computed: the same pipeline and the same offload hooks
run on FakeTensors of a device that is not there, and each storage is noted when it is made and when
it dies. What the dispatcher does not see is missing: workspaces of libraries and temporaries inside
an operation. Attention is taken to be what PyTorch chooses on recent GPUs.

Needs torch, diffusers, transformers, accelerate, sentencepiece, protobuf.
"""
import argparse
import contextlib
import gc
import json
import os
import pathlib
import queue
import random
import subprocess
import sys
import threading
import time
import weakref
from unittest import mock

HERE = pathlib.Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs" / "flux1-dev"
POLICIES = {"default": "", "expandable segments": "expandable_segments:True"}
MIB = 1 << 20
# Size of a block that marks the end of an image: odd, as no tensor of ours is.
MARK_BYTES = 7919


def read_options():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?")
    parser.add_argument("--fake", action="store_true")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--layers", default="2,4,3,2")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--tokenizers", default=str(HERE.parents[2] / "etc" / "mini"))
    parser.add_argument("--least", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # writes its trace there, or none: "-"
    options = parser.parse_args()
    if options.out is None and options.child is None:
        parser.error("where should the trace go?")
    options.layers = [int(n) for n in options.layers.split(",")]
    return options


def sizes(options):
    """Widths and heights between 512 and 1024, multiples of 16: the same in every run."""
    numbers = random.Random(options.seed)
    return [(512 + 16 * numbers.randrange(33), 512 + 16 * numbers.randrange(33))
            for _ in range(options.images)]


# ---- The pipeline ----

def config(name, **changes):
    return json.loads((CONFIGS / name / "config.json").read_text()) | changes


def make_models(options, device="cpu"):
    """In the host's memory; random numbers are drawn much faster on a GPU."""
    import diffusers
    import torch
    import transformers
    double, single, t5, clip = options.layers
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        models = {
            "transformer": diffusers.FluxTransformer2DModel.from_config(
                config("transformer", num_layers=double, num_single_layers=single)),
            "text_encoder_2": transformers.T5EncoderModel(
                transformers.T5Config(**config("text_encoder_2", num_layers=t5))),
            "text_encoder": transformers.CLIPTextModel(
                transformers.CLIPTextConfig(**config("text_encoder", num_hidden_layers=clip))),
            "vae": diffusers.AutoencoderKL.from_config(config("vae")),
        }
    torch.set_default_dtype(torch.float32)
    return {name: model.eval().requires_grad_(False).to("cpu") for name, model in models.items()}


def make_parts(options):
    """What stays on the host."""
    import diffusers
    import transformers
    folder = pathlib.Path(options.tokenizers)
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler.from_config(
            json.loads((CONFIGS / "scheduler" / "scheduler_config.json").read_text())),
        "tokenizer": transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "tokenizer_2": transformers.T5TokenizerFast.from_pretrained(folder / "tokenizer_2"),
    }


def make_pipeline(models, parts):
    import diffusers
    import torch
    from diffusers.hooks import apply_group_offloading
    for name, model in models.items():
        # T5's layers are in a module below the top, which is all that there is. (CLIP's are too, and
        # diffusers moves it as a whole.)
        apply_group_offloading(
            model.encoder if name == "text_encoder_2" else model, torch.device("cuda"),
            torch.device("cpu"), "block_level", num_blocks_per_group=1, use_stream=True)
    pipeline = diffusers.FluxPipeline(**models, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(pipeline, options, width, height):
    pipeline("a large red circle on a white background", width=width, height=height,
             num_inference_steps=options.steps, guidance_scale=3.5, output_type="pt")


def paint_all(pipeline, options, after_image):
    for i, (width, height) in enumerate(sizes(options)):
        paint(pipeline, options, width, height)
        after_image(i, width, height)


def mark_line(i, width, height):
    return f"m image {i + 1}, {width}x{height}"


# ---- Without a GPU ----

class FakeStream:
    def synchronize(self):
        """Nothing is ever queued."""


@contextlib.contextmanager
def fake_device(recorder):
    """Lets diffusers' hooks move FakeTensors to a device that is not there."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.overrides import TorchFunctionMode
    aten, compute = torch.ops.aten, FakeStream()

    class DataSetter(TorchFunctionMode):
        """`p.data = t` moves p's memory; a FakeTensor's device is to follow."""
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function == torch.Tensor.data.__set__ and isinstance(args[0], FakeTensor):
                args[0].fake_device = args[1].fake_device
            return result

    @contextlib.contextmanager
    def stream(chosen):
        before, recorder.stream = recorder.stream, int(chosen is not compute)
        yield
        recorder.stream = before

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
                  enable_gqa=False):
        if attn_mask is None and query.shape[-1] <= 256:
            return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p,
                                                            is_causal, scale=scale)[0]
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale)[0]

    def swap(old, new):
        old.data = new.data

    with mock.patch.multiple(torch.cuda, Stream=FakeStream, stream=stream,
                             current_stream=lambda *_: compute), \
         mock.patch.multiple(torch.Tensor, pin_memory=lambda self, *_: self,
                             is_pinned=lambda self, *_: True), \
         mock.patch.object(torch.utils, "swap_tensors", swap), \
         mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attention), \
         FakeTensorMode(allow_non_fake_inputs=True), DataSetter(), torch.no_grad():
        yield


def make_fake_recorder():
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Recorder(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.lines, self.live, self.count, self.stream = [], {}, 0, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, FakeTensor) and tensor.device.type == "cuda":
                    self.see(tensor.untyped_storage())
            return result

        def see(self, storage):
            if storage._cdata in self.live or storage.nbytes() == 0:
                return
            self.live[storage._cdata] = self.count
            self.lines.append(f"a {self.count} {storage.nbytes()} {self.stream}")
            weakref.finalize(storage, self.forget, storage._cdata)
            self.count += 1

        def forget(self, key):
            self.lines.append(f"f {self.live.pop(key)}")

    return Recorder()


def record_fake(options):
    recorder, parts = make_fake_recorder(), make_parts(options)
    with fake_device(recorder):
        pipeline = make_pipeline(make_models(options), parts)
        with recorder:
            paint_all(pipeline, options, lambda *image: recorder.lines.append(mark_line(*image)))
        lines = recorder.lines[:]  # what dies with the pipeline is no part of it
    head = ["FakeTensors: requests as PyTorch's dispatcher sees them; no workspaces of libraries,",
            "no temporaries inside operations. What PyTorch's own policies make of the same run is",
            "still to be measured on a GPU (the same command without --fake)."]
    return head, lines


# ---- On a GPU ----

def fragmentation():
    """1 - longest free run / all free bytes, of what PyTorch holds now."""
    import torch
    free = [block["size"] for segment in torch.cuda.memory_snapshot(include_traces=False)
            for block in segment["blocks"] if block["state"] == "inactive"]
    return 1 - max(free) / sum(free) if free else 0.0


def read_history(options, reserved):
    """The trace's lines, from PyTorch's own record, and the mean of 1 - requested / reserved over
    its events; so many bytes were reserved before it. What lived then is left out."""
    import torch
    lines, live, streams, images, count = [], {}, {}, enumerate(sizes(options)), 0
    requested, ratios = 0, []
    for entry in torch.cuda.memory._snapshot()["device_traces"][0]:
        action, size = entry["action"], entry["size"]
        if action in ("segment_alloc", "segment_map"):
            reserved += size
        elif action in ("segment_free", "segment_unmap"):
            reserved -= size
        elif action == "alloc" and size == MARK_BYTES:
            i, picture = next(images)
            lines.append(mark_line(i, *picture))
        elif action == "alloc":
            stream = streams.setdefault(entry["stream"], len(streams))
            live[entry["addr"]] = count, size
            lines.append(f"a {count} {size} {stream}")
            count += 1
            requested += size
            ratios.append(requested / max(reserved, 1))
        elif action == "free_requested" and entry["addr"] in live:
            number, size = live.pop(entry["addr"])
            lines.append(f"f {number}")
            requested -= size
            ratios.append(requested / max(reserved, 1))
    return lines, 1 - sum(ratios) / len(ratios)


def offload(pipeline):
    """After an image that failed in the middle, some layers are still on the device."""
    import torch
    for model in pipeline.components.values():
        for module in model.modules() if isinstance(model, torch.nn.Module) else ():
            hooks = getattr(module, "_diffusers_hook", None)
            hook = hooks.get_hook("group_offloading") if hooks else None
            if hook:
                hook.group.offload_()
    gc.collect()


def failures(pipeline, options, limit, most):
    """How many of the images find no memory within the limit (with `most` of them it ends), and the
    peak requested, which is less under a limit: cuDNN takes what algorithms there is room for."""
    import torch
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    count = 0
    for size in sizes(options):
        failed = False
        try:
            paint(pipeline, options, *size)
        except RuntimeError as error:  # cuDNN finds "no engine" where it finds no memory
            failed = True
            if not isinstance(error, torch.OutOfMemoryError):
                print(f"{size}: {str(error).splitlines()[0]}", file=sys.stderr)
        if failed:
            offload(pipeline)
            count += 1
        if count == most:
            break
    return count, torch.cuda.memory_stats()["requested_bytes.all.peak"]


def find_least(pipeline, options, figures):
    """First how many images fail with 110 % of the peak, then halves the interval in which the
    least limit lies, until it is short. Yields what is known, whenever it is more."""
    requested, most = figures["requested"], options.images
    low, high, limit = requested // 2, figures["reserved"], requested * 11 // 10
    while high - low > 16 * MIB:
        failed, peak = failures(pipeline, options, limit, most)
        figures.setdefault("failed", failed)
        low, high, requested = (limit, high, requested) if failed else (low, limit, peak)
        yield figures | {"least": (low, high, requested)}
        limit, most = (low + high) // 2, 1


def run_child(options):
    """One policy, chosen by the environment: paints, and prints PyTorch's figures as JSON, a line
    whenever there are more."""
    import torch
    start = time.monotonic()

    def tell(figures):
        print(json.dumps(figures | {"seconds": time.monotonic() - start}), flush=True)

    pipeline = make_pipeline(make_models(options, "cuda"), make_parts(options))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    tell({})
    fragments = []

    def after_image(*_):
        torch.cuda.synchronize()
        torch.empty(MARK_BYTES, dtype=torch.uint8, device="cuda")
        fragments.append(fragmentation())

    with torch.no_grad():
        reserved = torch.cuda.memory_reserved()
        torch.cuda.memory._record_memory_history("all", context=None, max_entries=1 << 24)
        paint_all(pipeline, options, after_image)
        stats = torch.cuda.memory_stats()
        lines, mean_r = read_history(options, reserved)
        torch.cuda.memory._record_memory_history(None)
        if options.child != "-":
            pathlib.Path(options.child).write_text("\n".join(lines) + "\n")
        figures = {key: stats[f"{key}_bytes.all.peak"]
                   for key in ("requested", "allocated", "reserved")}
        figures |= {"r": mean_r, "end": fragments[-1], "worst": max(fragments),
                    "device": torch.cuda.get_device_name()}
        tell(figures)
        if options.least:
            for more in find_least(pipeline, options, figures):
                tell(more)


def start_child(options, policy, trace):
    command = [sys.executable, __file__, "--child", trace, "--images", str(options.images),
               "--steps", str(options.steps), "--layers", ",".join(map(str, options.layers)),
               "--seed", str(options.seed), "--tokenizers", options.tokenizers]
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")}
    if POLICIES[policy]:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = POLICIES[policy]
    return subprocess.Popen(command + ["--least"] * options.least, stdout=subprocess.PIPE,
                            text=True, env=environment)


def describe_policy(policy, figures):
    requested = figures["requested"]
    line = (f"{policy}: peak requested {requested / MIB:.0f} MiB, allocated "
            f"{figures['allocated'] / MIB:.0f}, reserved {figures['reserved'] / MIB:.0f}, U "
            f"{100 * (1 - requested / figures['reserved']):.1f} %, R {100 * figures['r']:.1f} %, "
            f"fragmentation "
            f"{100 * figures['end']:.1f} % at the end, {100 * figures['worst']:.1f} % at worst")
    if "least" in figures:
        low, high, requested = figures["least"]
        line += (f"; {figures['failed']} images fail with 110 % of that; the least limit is above "
                 f"{low / MIB:.0f} MiB, at most {high / MIB:.0f}, with which {requested / MIB:.0f} "
                 f"are requested, so that E is {100 * (1 - requested / high):.1f} %")
    return line


def record_gpu(options):
    """Yields what is known so far, whenever it is more."""
    part, told = options.out + ".part", queue.Queue()

    def listen(policy, child):
        for line in child.stdout:
            if line.startswith("{"):
                told.put((policy, json.loads(line)))
        told.put((policy, None))

    children = {policy: start_child(options, policy, part if i == 0 else "-")
                for i, policy in enumerate(POLICIES)}
    for item in children.items():
        threading.Thread(target=listen, args=item, daemon=True).start()
    figures, running = {}, len(children)
    while running > 0:
        policy, more = told.get()
        running -= more is None
        if not more:
            continue
        seconds = more.pop("seconds")
        print(f"{seconds:.0f} s,", describe_policy(policy, more) if more else f"{policy}: loaded",
              flush=True)
        figures |= {policy: more} if more else {}
        if not figures:
            continue
        device = next(iter(figures.values()))["device"]
        head = [f"On {device}; what PyTorch reported of itself:"]
        head += [describe_policy(*item) for item in figures.items()]
        yield head, (pathlib.Path(part).read_text().splitlines() if os.path.exists(part) else [])
    if any(child.wait() != 0 for child in children.values()):
        sys.exit("one of the two failed")
    os.unlink(part)


def main():
    options = read_options()
    if options.child is not None:
        run_child(options)
        return
    import diffusers
    import torch
    title = [f"FluxPipeline of diffusers {diffusers.__version__} on PyTorch {torch.__version__}, "
             f"{options.images} images of 512 to 1024 px a side,",
             f"{options.steps} step(s), FLUX.1-dev's shapes; double, single, T5, CLIP layers: "
             f"{', '.join(map(str, options.layers))}; block-wise offload.",
             "Recorded by tests/bench/alloc/record_pytorch.py " + " ".join(sys.argv[2:])]
    for head, lines in [record_fake(options)] if options.fake else record_gpu(options):
        text = [f"# {line}".rstrip() for line in title + head] + lines
        pathlib.Path(options.out).write_text("\n".join(text) + "\n")
    print("\n".join(title + head + [f"{len(lines)} lines"]))


if __name__ == "__main__":
    main()
