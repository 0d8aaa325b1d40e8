"""The peers' side, one work per process: `python -m group_step_parts.peers WORK [--toy]` prints a line of JSON.

TRL's GRPOTrainer and Hugging Face's `generate` on a Qwen3-VL of the same sizes, float32, sdpa attention, no gradient
checkpointing (TRL's default would cost it a forward pass more), answers of a fixed number of tokens, the same reward.
TRL computes 8 answers at a time, as its device batch. Everything is made here: no hub, no torchvision, no server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from group_step_parts.works import POLICY, TOY, WORKS, Work, picture, reward

MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = """{%- for turn in messages %}{{ '<|im_start|>' }}{% if turn.content is string %}{{ turn.content }}{% else %}
{%- for part in turn.content %}{% if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"""


def processor(work: Work) -> Qwen3VLProcessor:
    """A tokenizer of single bytes, and the image processor that needs no torchvision."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, *MARKS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(MARKS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        chat_template=TEMPLATE,
    )  # fmt: skip
    images = Qwen2VLImageProcessorPil(
        patch_size=16, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": 1024, "longest_edge": work.image**2},
    )  # fmt: skip

    class WithoutVideos(Qwen3VLProcessor):
        """The video processor would need torchvision."""

        def check_argument_for_proper_class(self, *args: Any, **kwargs: Any) -> None:
            return None

    return WithoutVideos(image_processor=images, tokenizer=fast, video_processor=None, chat_template=TEMPLATE)


def policy(sizes: dict[str, Any], tokenizer: Any) -> Qwen3VLForConditionalGeneration:
    ids = dict(zip(MARKS, tokenizer.convert_tokens_to_ids(list(MARKS)), strict=True))
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": sizes["vocab"], "hidden_size": sizes["hidden"], "intermediate_size": sizes["ffn"],
            "num_hidden_layers": sizes["layers"], "num_attention_heads": sizes["heads"],
            "num_key_value_heads": sizes["kv_heads"], "head_dim": sizes["head_dim"], "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5e6, "mrope_section": list(sizes["mrope"]),
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": sizes["vision_depth"], "hidden_size": sizes["vision_hidden"],
            "intermediate_size": sizes["vision_ffn"], "num_heads": sizes["vision_heads"], "patch_size": 16,
            "out_hidden_size": sizes["hidden"], "num_position_embeddings": sizes["vision_positions"],
            "deepstack_visual_indexes": list(sizes["deepstack"]),
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(config)


def question(work: Work) -> str:
    """Text that makes a prompt of the wanted length: a token a byte, and the template's six marks."""
    return "x" * max(work.prompt_tokens - (work.image // 32) ** 2 - 5, 1)


def timed_generate(work: Work, sizes: dict[str, Any]) -> dict[str, Any]:
    made = processor(work)
    model = policy(sizes, made.tokenizer).eval()
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question(work)}]}]
    text = made.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    count = work.prompts * work.samples
    pictures = [picture(work.image, number // work.samples) for number in range(count)]
    inputs = made(text=[text] * count, images=pictures, return_tensors="pt")
    times = []
    with torch.inference_mode():
        for _ in range(1 + work.peer_repeats):
            start = time.perf_counter()
            model.generate(
                **inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=work.new_tokens,
                min_new_tokens=work.new_tokens, pad_token_id=made.tokenizer.pad_token_id,
            )  # fmt: skip
            times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])
    phases = {"tokens_per_s": count * work.new_tokens / seconds, "prompt_tokens": float(inputs["input_ids"].shape[1])}
    return {"peer_s": seconds, "phases": phases}


def timed_trainer(work: Work, sizes: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    made = processor(work)
    rounds = 1 + work.peer_repeats
    rows = [
        {"prompt": [{"role": "user", "content": question(work)}], "image": picture(work.image, number)}
        for number in range(work.prompts * (rounds + 1))
    ]
    answers = work.prompts * work.samples
    together = min(8, answers)
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to=[], save_strategy="no", seed=0,
        per_device_train_batch_size=together, gradient_accumulation_steps=answers // together,
        num_generations=work.samples, max_completion_length=work.new_tokens, num_iterations=work.updates,
        max_steps=rounds * work.updates, learning_rate=1e-5, weight_decay=0.01,
        lr_scheduler_type="constant", beta=0.0, temperature=1.0, loss_type="dapo",
        gradient_checkpointing=False, disable_tqdm=True, shuffle_dataset=False, logging_steps=1000,
        generation_kwargs={"min_new_tokens": work.new_tokens},
    )  # fmt: skip

    def score(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [reward(ids) for ids in completion_ids]

    spent: defaultdict[str, float] = defaultdict(float)
    steps: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            spent.clear()
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.append({"step": time.perf_counter() - self.start, "sampling": spent["sampling"]})

    class Timed(GRPOTrainer):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = super()._generate_single_turn(*args, **kwargs)
            spent["sampling"] += time.perf_counter() - start
            return found

    trainer = Timed(
        model=policy(sizes, made.tokenizer), reward_funcs=score, args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=made, callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    # Several updates make one round; the first round warms up.
    per_round = [steps[i : i + work.updates] for i in range(work.updates, len(steps), work.updates)]
    sums = [{name: sum(step[name] for step in each) for name in ("step", "sampling")} for each in per_round]
    seconds, sampling = (statistics.median(each[name] for each in sums) for name in ("step", "sampling"))
    return {"peer_s": seconds, "phases": {"sampling": sampling, "update_and_rest": seconds - sampling}}


def versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    try:
        import trl
    except ImportError:
        return found
    return found | {"trl": trl.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=sorted(name for name, work in WORKS.items() if work.peer))
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work, sizes = WORKS[args.work], POLICY
    if args.toy:
        work, sizes = work.toy(), TOY
    found = (timed_trainer if work.kind == "step" else timed_generate)(work, sizes)
    print(json.dumps(found | {"versions": versions()}))


if __name__ == "__main__":
    main()
