"""`visionthink plan`: what fits and what does not, and the setting that would make it fit."""

import json
import re

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.planning.gpus import GPUS, find_gpu
from cluster.planning.models import find_model
from cluster.planning.workload import Workload
from configs.load import FOLDER, load_config
from learner.memory import GIB

READY = sorted(file.stem for file in FOLDER.glob("*.yaml"))
runner = CliRunner()


def plan(*arguments):
    done = runner.invoke(app, ["plan", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None, done.stderr


@pytest.mark.parametrize("name", READY)
def test_every_ready_config_fits_its_machine(name):
    gpus = {"1gpu": 1, "2gpu": 2, "8gpu": 8, "4x8gpu": 32}.get(name.split("_")[-1], 0)
    code, found, _ = plan("--config", name, "--gpus", str(gpus))
    assert (code, found["fits"], found["num_gpus"]) == (0, True, gpus)
    assert found["step_s"] > 0
    for process in found["processes"]:
        assert process["total_gib"] <= process["room_gib"]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--config", "visionthink_3b_2gpu", "--gpu", "a100-40", "learner.offload_optimizer=false"], "learner.offload"),
        (["--config", "visionthink_7b_8gpu", "learner.zero_stage=2", "learner.num_ranks=2"], "learner."),
        (["--config", "visionthink_7b_8gpu", "rollout.gpu_memory_fraction=0.2"], "rollout.gpu_memory_fraction="),
        (["--config", "visionthink_7b_8gpu", "rollout.gpu_memory_fraction=0.9", "--gpu-memory", "16"], "rollout.tens"),
        (["--config", "visionthink_3b_1gpu", "rollout.gpu_memory_fraction=0.9"], "rollout.gpu_memory_fraction="),
        (["--config", "visionthink_7b_lora_1gpu", "rollout.gpu_memory_fraction=0.62", "rollout.num_gpus=0.62",
          "learner.num_gpus=0.38"], "rollout.gpu_memory_fraction="),
        (["--config", "visionthink_7b_lora_1gpu", "learner.gradient_checkpointing=false"], "learner.gradient_checkp"),
        (["--config", "visionthink_3b_1gpu", "--gpu", "h200", "learner.offload_optimizer=false",
          "rollout.gpu_memory_fraction=0.38", "learner.num_gpus=0.6", "learner.max_tokens_per_vision_pass=4096"],
         "learner.max_tokens_per_vision_pass=1024"),
    ],
)  # fmt: skip
def test_what_cannot_fit_is_refused_and_the_setting_that_is_named_makes_it_fit(arguments, remedy):
    code, found, told = plan(*arguments)
    assert (code, found["fits"]) == (1, False)
    assert remedy in told
    for _ in range(4):
        named = [pair for line in found["problems"] for pair in _named(line)]
        assert named, found["problems"]
        arguments = [*arguments, *named]
        code, found, _ = plan(*arguments)
        if code == 0:
            return
    pytest.fail(f"{found['problems']}")


def _named(line):
    return re.findall(r"(?:rollout|learner)\.\w+=[\w.]+", line.rpartition("set ")[2])


def test_too_few_gpus_are_refused_with_both_numbers():
    code, found, told = plan("--config", "visionthink_7b_8gpu", "--gpus", "4")
    assert code == 1
    assert "need 8 GPUs, the cluster has 4" in told
    assert len(found["problems"]) == 1


def test_of_a_gpu_that_is_known_by_its_memory_alone_no_speed_is_told():
    code, found, told = plan("--config", "visionthink_3b_2gpu", "--gpu-memory", "96")
    assert (code, found["step"], found["step_s"]) == (0, None, None)
    assert found["processes"][1]["room_gib"] == 96
    assert "--gpu NAME" in told


def test_an_engine_on_a_gpu_does_not_speed_up_a_learner_on_cores_and_pictures_stay_within_the_models_bounds():
    _, cores, _ = plan()
    code, mixed, _ = plan("rollout.num_gpus=1", "--pixels", "99999999")
    assert code == 0
    assert mixed["assumed"]["visual_tokens"] == cores["assumed"]["visual_tokens"] == 224 * 224 // 28**2
    assert mixed["step"]["update_s"] == cores["step"]["update_s"]
    assert mixed["step"]["play_s"] < cores["step"]["play_s"]


def test_a_larger_workload_takes_longer_and_a_judge_costs_what_its_prices_say():
    base = ["--config", "visionthink_7b_8gpu"]
    _, small, _ = plan(*base, "--pixels", "300000", "--asks", "0.1")
    _, large, _ = plan(*base, "--pixels", "4000000", "--asks", "0.9")
    assert large["step"]["play_s"] > 1.5 * small["step"]["play_s"]
    judge = small["judge"]
    assert judge["calls"] == 1455  # 128 groups of 16, of which rules leave 71 %
    assert judge["usd"] == pytest.approx((2.5 * judge["prompt_tokens"] + 10 * judge["reply_tokens"]) / 1e6, abs=1e-4)
    _, free, _ = plan(*base, "judge.chain=rules")
    assert free["judge"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "h1000"], "must be one of h100"),
        (["--gpu-memory", "-3"], "must be a number above 0"),
        (["--gpu-memory", "nan"], "must be a number above 0"),
        (["--gpu-memory", "inf"], "must be a number above 0"),
        (["--config", "visionthink_3b_2gpu", "model.path=models/other"], "'models/other' is not on this machine"),
    ],
)
def test_what_is_not_known_is_one_line(arguments, words):
    done = runner.invoke(app, ["plan", *arguments])
    assert done.exit_code == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_model_that_is_not_here_is_known_by_its_name(tmp_path):
    assert find_model("Qwen/Qwen2.5-VL-7B-Instruct")["text_config"]["hidden_size"] == 3584
    assert find_model("models/Qwen3-VL-4B-Instruct")["text_config"]["hidden_size"] == 2560
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"must be one of qwen2_5_vl .* not 'llama'"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        find_model(str(tmp_path))


def test_a_gpu_of_the_table_may_have_another_memory():
    assert find_gpu("h100", 94.0).memory_bytes == int(94 * GIB)
    assert find_gpu("h100", 94.0).tflops == GPUS["h100"].tflops


def test_the_tokens_of_a_group_are_counted_as_the_learner_shares_them():
    """Two of four episodes ask: 25 + 10 shared; 4 replies of 7; twice 100 + 3 and a reply of 7."""
    work = Workload(
        visual_tokens=100, token_side=28, text_tokens=10, second_text_tokens=3, turn_tokens=7, ask_share=0.5,
        shows_full_first=False, group_size=4, groups=1,
    )  # fmt: skip
    assert work.learned_tokens == 35 + 4 * 7 + 2 * (103 + 7)
    assert work.prefilled_tokens == 35 + 2 * 103
    assert work.episode_tokens == 4 * (35 + 7) + 2 * (103 + 7)
    assert work.encoded_tokens == 125


def test_calls_for_regions_are_counted_one_by_one():
    """Two of four episodes call for the full view once and for two regions of 16: 100 + 2 x 16 + 3 x 3 in prompts, and
    four replies of 7 each."""
    work = Workload(
        visual_tokens=100, token_side=28, text_tokens=10, second_text_tokens=3, turn_tokens=7, ask_share=0.5,
        shows_full_first=False, group_size=4, groups=1, full_calls=1.0, region_calls=2.0, region_tokens=16,
    )  # fmt: skip
    assert work.views == {25: 1, 100: 1, 16: 4}, "a group shares the full view; regions differ"
    assert work.encoded_tokens == 25 + 100 + 4 * 16
    assert work.prefilled_tokens == 35 + 2 * (132 + 9)
    assert work.generated_tokens == 7 * (4 + 2 * 3)
    assert work.last_prompt == 35 + 141 + 3 * 7
    own = 141 + 4 * 7
    assert work.token_pairs == 35**2 / 2 + 2 * 7 * (35 + 3.5) + 2 * own * (35 + own / 2)
    each = 141 / 3  # prompt k of 3 follows k replies and k - 1 others
    prompts = sum(each * (35 + k * 7 + (k - 1) * each + each / 2) for k in (1, 2, 3))
    assert work.prefill_pairs == pytest.approx(35**2 / 2 + 2 * prompts)


CROPS = "rollout.tools.names=resize_image,request_local_region"


def test_the_default_tools_are_one_call_for_the_full_view():
    _, found, told = plan()
    assumed = found["assumed"]
    assert (assumed["full_calls"], assumed["region_calls"], assumed["region_tokens"]) == (1, 0, 0)
    assert "50% of episodes ask (--pixels, --turn-tokens, --asks)" in told
    assert found["prompts"]["last"] < found["prompts"]["most"]


@pytest.mark.parametrize(
    ("settings", "full", "regions"),
    [
        ([CROPS], 0.5, 0.5),  # one call, of either tool
        ([CROPS, "rollout.tools.max_turns=8"], 1.0, 3.0),  # 1 to 7 calls, of which the full view may be one
        ([CROPS, "rollout.tools.max_turns=8", "--calls", "7"], 1.0, 6.0),
        (["rollout.tools.names=image_zoom_in_tool", "rollout.tools.max_turns=4"], 0.0, 2.0),
        ([CROPS, "rollout.tools.max_turns=8", "rollout.tools.max_calls={request_local_region: 2}"], 1.0, 1.0),
    ],
)
def test_expected_calls_follow_the_tools_and_their_limits(settings, full, regions):
    code, found, _ = plan(*settings, "--pixels", "50176", "--region", "0.125")
    assert code == 0
    assert (found["assumed"]["full_calls"], found["assumed"]["region_calls"]) == (full, regions)
    assert found["assumed"]["region_tokens"] == 8, "an eighth of 64"


def test_a_crop_is_cheaper_than_the_full_view_and_more_calls_are_dearer():
    crops = ["--config", "visionthink_3b_2gpu", "rollout.tools.max_turns=6", "rollout.tools.names=request_local_region"]
    resize = ["--config", "visionthink_3b_2gpu", "--calls", "1"]
    one, four = (plan(*crops, "--calls", str(calls), "--region", "0.0625")[1] for calls in (1, 4))
    _, full, _ = plan(*resize)
    assert one["step"]["vision_s"] < four["step"]["vision_s"]
    assert one["step"]["play_s"] < four["step"]["play_s"]
    assert one["prompts"]["last"] < full["prompts"]["last"]


def test_prompts_that_grow_beyond_the_limit_are_told():
    arguments = [CROPS, "rollout.tools.max_turns=12", "--calls", "11", "--region", "1"]
    code, found, told = plan(*arguments)
    assert code == 0
    assert found["prompts"]["last"] > found["prompts"]["most"] == 512
    assert "above rollout.max_prompt_tokens=512, so that many end as truncated" in told
    assert "11 times each: 1 for the full view (64 visual tokens) and 10 for a region (64)" in told
    assert plan(CROPS)[2].count("truncated") == 0


def test_more_calls_than_an_episode_may_have_are_refused():
    code, _, told = plan("--calls", "2")
    assert code == 1
    assert "--calls=2.0 is invalid: must be from 1 to 1 with rollout.tools" in told


def test_a_view_larger_than_a_pass_is_recomputed_by_block_and_rounds_hold_whole_groups():
    learner = load_config("visionthink_3b_2gpu", ["learner.offload_optimizer=false"]).learner
    small = Workload(
        visual_tokens=400, token_side=28, text_tokens=10, second_text_tokens=3, turn_tokens=50, ask_share=0.5,
        shows_full_first=False, group_size=8, groups=32,
    )  # fmt: skip
    load = small.load(learner)
    assert not load.recomputes_blocks
    assert load.num_visual_tokens == 2 * 500  # two groups of 1,024 tokens in a pass
    assert load.num_tokens == 2 * small.learned_tokens
