import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.errors import LearnerError
from actors.views import shown_size
from learner import scoring
from learner.batches.batch import weight_episodes
from learner.batches.collate import mrope_positions, placeholder_spans
from learner.families.architectures import architecture_of, encode_views
from learner.families.lookup import FAMILIES
from learner.model import Policy, load_policy, token_logprobs, use_fast_layers
from learner.scoring import FORBIDDEN_LOGIT
from learner.vision import grid_of, patchify
from tests.learner.builders import (
    FORBIDDEN_IDS,
    IMAGE_ID,
    SPEC,
    SPECS,
    collated,
    features_of,
    images_of,
    library_logprobs,
    library_processor,
    make_group,
    piece_without_pictures,
    pieces_of,
    plan_of,
    restore_library,
    small_model,
)

GRIDS = ((1, 8, 8), (1, 16, 16), (1, 10, 14), (1, 8, 8), (1, 6, 20), (2, 4, 6))


of_each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def library_as_it_is():
    """Each test starts from the library's own layers."""
    restore_library()


def fast(model):
    use_fast_layers(model)
    return model


def one_pass(groups, spec=SPEC):
    """One vision pass and one micro-batch."""
    (((only_pass,), (only_batch,)),) = pieces_of(plan_of(groups), groups, spec)
    return only_pass, only_batch


def scores(model, shown, batch, **settings):
    settings = {"temperature": 1.0, "forbidden_ids": FORBIDDEN_IDS, **settings}
    return token_logprobs(model, batch, features_of(model, [shown]), **settings)


@of_each_family
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_vision_tower_gives_the_librarys_features_and_gradients(family, implementation):
    """Those of deep blocks, too, side by side with the last."""
    model = small_model(family=family)
    model.set_attn_implementation(implementation)
    tower = model.model.visual
    values = 2 * 3 * SPECS[family].patch_size ** 2
    patches = torch.randn(sum(t * h * w for t, h, w in GRIDS), values)

    def library():
        out = tower(patches, grid_thw=torch.tensor(GRIDS))
        return torch.cat([out.pooler_output, *(getattr(out, "deepstack_features", None) or ())], dim=1)

    probe = torch.randn(len(patches) // 4, library().shape[1])

    def run(encode):
        tower.zero_grad()
        embeddings = encode()
        (embeddings * probe).sum().backward()
        return embeddings.detach(), {name: p.grad.clone() for name, p in tower.named_parameters()}

    expected, expected_grads = run(library)
    architecture_of(model).install()
    patched, _ = run(library)
    fast(model)
    ours, grads = run(lambda: encode_views(model, patches, GRIDS))
    assert (
        ours.shape[1]
        == model.config.text_config.hidden_size * FAMILIES[family].read_shape(model.config.to_dict()).num_features
    )
    torch.testing.assert_close(patched, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], atol=1e-4, rtol=1e-4, msg=name)


@of_each_family
@pytest.mark.parametrize("size", [(2, 2), (4, 8), (10, 6)])
def test_patches_are_those_of_the_librarys_processor(family, size):
    spec = SPECS[family]
    height, width = (tokens * spec.token_side for tokens in size)
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    patches = patchify(torch.from_numpy(np.stack([picture, picture[::-1]])), spec)
    theirs = library_processor(spec)(images=[picture, picture[::-1].copy()], return_tensors="np")
    assert grid_of(picture, spec) == tuple(theirs["image_grid_thw"][0])
    assert patches.dtype == torch.float32
    np.testing.assert_allclose(patches.numpy(), theirs["pixel_values"], atol=1e-6)


def test_a_view_that_does_not_divide_into_tokens_is_refused():
    with pytest.raises(ValueError, match="57x56"):
        grid_of(np.zeros((57, 56, 3), np.uint8), SPEC)


@of_each_family
@pytest.mark.parametrize(("ask_share", "num_calls"), [(0.0, 0), (0.5, 0), (1.0, 0), (0.5, 3)])
def test_positions_are_those_of_the_librarys_rope_index_in_each_episode_alone(family, ask_share, num_calls):
    model, spec = small_model(family=family), SPECS[family]
    sizes = [(112, 112), (56, 224), (168, 112)]
    groups = [
        make_group(seed, size=size, ask_share=ask_share, num_calls=num_calls, spec=spec)
        for seed, size in enumerate(sizes)
    ]
    plans = plan_of(groups)
    _, (batch,) = pieces_of(plans, groups, spec)[0]
    start = 0
    for family in plans[0].mini_batches[0].micro_batches[0]:
        full_size = groups[family.rows[0].image].played.full_size
        remainder = start + family.num_shared
        for row, length in zip(family.rows, family.remainders, strict=True):
            at = [*range(start, start + family.num_shared), *range(remainder, remainder + length)]
            remainder += length
            token_ids = torch.from_numpy(row.token_ids)
            sizes = [shown_size(part.view, full_size) for part in row.prompts if part.view is not None]
            grids = [(1, height // spec.patch_size, width // spec.patch_size) for height, width in sizes]
            expected, _ = model.model.get_rope_index(
                token_ids[None],
                mm_token_type_ids=(token_ids == IMAGE_ID).long()[None],
                image_grid_thw=torch.tensor(grids),
            )
            assert torch.equal(batch.token_ids_T[at], token_ids)
            assert torch.equal(batch.positions_3T[:, at], expected[:, 0])
        start += family.num_tokens
    assert start == len(batch.token_ids_T)


def test_positions_after_a_picture_continue_behind_its_longer_side():
    positions = mrope_positions(9, [(2, 8)], [(1, 4, 6)], 2)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]


@of_each_family
@pytest.mark.parametrize("budget", [300, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropies_are_those_of_the_librarys_forward_pass(family, budget, temperature):
    model, spec = small_model(family=family), SPECS[family]
    groups = [make_group(1, size=(112, 112), spec=spec), make_group(2, size=(56, 168), lost=(1,), spec=spec)]
    expected = {
        (episode.token_ids, at): (logprob.item(), entropy.item())
        for group in groups
        for episode, reward in zip(group.played.episodes, group.rewards, strict=True)
        if reward is not None
        for at, logprob, entropy in library_logprobs(model, episode, group.image, temperature=temperature)
    }
    fast(model)
    (plan,) = plan_of(groups, budget=budget)
    passes, batches = pieces_of([plan], groups, spec)[0]
    seen = 0
    for families, batch in zip(plan.mini_batches[0].micro_batches, batches, strict=True):
        logprobs, entropies = token_logprobs(
            model, batch, features_of(model, passes), temperature=temperature, forbidden_ids=FORBIDDEN_IDS
        )
        rows = [row for family in families for row in family.rows]
        keys = [(tuple(row.token_ids.tolist()), int(at)) for row in rows for at in row.generated_at]
        for key, logprob, entropy in zip(keys, logprobs.tolist(), entropies.tolist(), strict=True):
            assert (logprob, entropy) == pytest.approx(expected[key], abs=1e-5)
            seen += 1
    assert seen == len(expected)


@of_each_family
def test_a_language_model_without_segments_attends_as_the_librarys(family):
    model = small_model(family=family)
    token_ids = torch.randint(10, 96, (3, 17))
    expected = model(input_ids=token_ids).logits
    torch.testing.assert_close(fast(model)(input_ids=token_ids).logits, expected, atol=1e-5, rtol=0)


def test_logits_in_chunks_give_the_same_values_and_gradients(monkeypatch):
    model = fast(small_model())
    shown, batch = one_pass([make_group(1)])

    def run():
        model.zero_grad()
        logprobs, entropies = scores(model, shown, batch)
        (logprobs.sum() + 0.1 * entropies.sum()).backward()
        return logprobs.detach(), model.lm_head.weight.grad.clone()

    whole = run()
    monkeypatch.setattr(scoring, "MAX_LOGITS", 96 * 5)
    torch.testing.assert_close(run(), whole, atol=1e-5, rtol=1e-4)


def test_forbidden_ids_have_no_probability():
    model = fast(small_model())
    shown, batch = one_pass([make_group(1)])
    forbidden = replace(batch, target_ids_N=torch.full_like(batch.target_ids_N, IMAGE_ID))
    logprobs, entropies = scores(model, shown, forbidden)
    assert logprobs.max().item() < FORBIDDEN_LOGIT / 2
    assert torch.isfinite(entropies).all()
    assert entropies.max().item() <= np.log(96 - len(FORBIDDEN_IDS)) + 1e-5


@of_each_family
def test_the_last_layer_goes_on_with_the_tokens_alone_that_predict_one(family):
    model, spec = fast(small_model(family=family)), SPECS[family]
    shown, batch = one_pass([make_group(1, group_size=8, ask_share=0.5, spec=spec)], spec)
    sizes = []
    for layer in model.model.language_model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    scores(model, shown, batch)
    num_tokens, num_read = len(batch.token_ids_T), len(batch.read_at_U)
    assert num_read == len(batch.predicted_from_N.unique()) < len(batch.predicted_from_N) < num_tokens
    assert sizes == [num_tokens] * (len(sizes) - 1) + [num_read]


def test_the_views_of_a_group_are_encoded_once_and_its_first_picture_is_placed_once():
    shown, batch = one_pass([make_group(1, group_size=8, ask_share=1.0)])
    assert sorted(grid[1:] for grid in shown.grids) == [(4, 4), (8, 8)]
    assert len(batch.placeholder_at_M) == 4 + 8 * 16
    assert len(batch.feature_of_M.unique()) == 4 + 16


@of_each_family
def test_pieces_without_a_picture_still_run_every_module_once_forward_and_backward(family):
    """Under ZeRO-3 each of these calls is a collective."""
    model, spec = fast(small_model(family=family)), SPECS[family]
    groups = [make_group(1, spec=spec)]
    (plan,) = plan_of(groups)
    (piece,) = plan.mini_batches
    calls = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    found = []
    for each, images in ((piece, images_of(plan, groups)), (piece_without_pictures(piece), [])):
        model.zero_grad()
        calls.clear()
        (shown,), (batch,) = collated(each, images, spec)
        scores(model, shown, batch)[0].sum().backward()
        found.append(list(calls))
    assert found[0] == found[1]
    assert (found[1].count("model.visual.merger"), found[1].count("lm_head")) == (1, 1)
    for name, parameter in model.model.visual.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() == 0, name


def test_placeholders_that_disagree_with_the_pictures_are_refused_with_both_numbers():
    (plan,) = plan_of([make_group(1, size=(112, 112), ask_share=0.0)])
    with pytest.raises(LearnerError, match=r"4 image placeholders \[4\] for 8 visual tokens \[8\]"):
        collated(plan.mini_batches[0], [np.zeros((112, 224, 3), np.uint8)])


def test_two_pictures_side_by_side_are_not_one():
    row = weight_episodes([(0, make_group(1, ask_share=1.0))], 1)[0]
    spans = placeholder_spans(row, [(1, 4, 4), (1, 8, 8)], 2, IMAGE_ID)
    assert [stop - start for start, stop in spans] == [4, 16]


@of_each_family
def test_a_policy_is_loaded_from_its_folder(tmp_path, family):
    model = small_model(family=family)
    model.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path)
    for (name, expected), (_, found) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(found, expected), name
    assert loaded.training
    assert loaded.config._attn_implementation == "sdpa"


def test_random_weights_need_the_configuration_alone_and_follow_the_seed(tmp_path):
    small_model().config.save_pretrained(tmp_path)
    drawn = [load_policy(tmp_path, load="random", dtype=torch.bfloat16, seed=seed) for seed in (7, 7, 8)]
    assert drawn[0].dtype == torch.bfloat16
    assert torch.equal(drawn[0].lm_head.weight, drawn[1].lm_head.weight)
    assert not torch.equal(drawn[0].lm_head.weight, drawn[2].lm_head.weight)
    assert drawn[0].lm_head.weight is drawn[0].model.language_model.embed_tokens.weight


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"auto_map": {"AutoModel": "theirs.py"}}, "auto_map"),
        ({"model_type": "llama"}, r"must be one of qwen2_5_vl \(Qwen2.5-VL\), qwen3_vl \(Qwen3-VL\), not 'llama'"),
        ({"model_type": "qwen3_vl_moe"}, "not 'qwen3_vl_moe'"),
        ({"model_type": None}, "not None"),
    ],
)
def test_a_folder_with_foreign_code_or_another_family_is_refused(tmp_path, change, reason):
    small_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=reason):
        load_policy(tmp_path)


def test_a_name_that_is_no_folder_is_refused():
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_policy("Qwen/Qwen2.5-VL-7B-Instruct")


@of_each_family
@pytest.mark.parametrize("recomputes", [True, False])
def test_neither_checkpointing_nor_recomputed_blocks_change_a_gradient(family, recomputes):
    model, spec = fast(small_model(family=family)), SPECS[family]
    policy = Policy(model, temperature=1.0, forbidden_ids=FORBIDDEN_IDS)
    policy.train()
    shown, batch = one_pass([make_group(1, spec=spec)], spec)
    runs = []
    model.model.visual.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))

    def gradients(shown):
        policy.zero_grad()
        policy(batch, policy(shown))[0].sum().backward()
        return {name: p.grad.clone() for name, p in policy.named_parameters()}

    expected = gradients(shown)
    model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    runs.clear()
    for name, grad in gradients(replace(shown, recomputes_blocks=recomputes)).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)
    assert len(runs) == (2 if recomputes else 1)


def test_a_model_with_sliding_windows_is_refused(tmp_path):
    small_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"].update(layer_types=["sliding_attention", "full_attention"], sliding_window=8)
    config["text_config"]["use_sliding_window"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="sliding-window"):
        load_policy(tmp_path)
