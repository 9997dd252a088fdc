"""Where a checkpoint's tensors go in a model that stacks and pads its parameters as vLLM's do."""

import pytest
import torch
from torch import nn

from actors.engine import parameters
from actors.engine.parameters import ParameterViews, fixed_parameters
from actors.errors import WeightSyncError
from actors.weights.buckets import slot_tensor
from actors.weights.layout import TensorSpec, lay_out

WIDTH, NUM_KEYS, INNER, WORDS, PADDED_WORDS = 4, 2, 6, 10, 16
CHECKPOINT = {
    "model.embed_tokens.weight": (WORDS, WIDTH),
    "model.layers.0.self_attn.q_proj.weight": (WIDTH, WIDTH),
    "model.layers.0.self_attn.q_proj.bias": (WIDTH,),
    "model.layers.0.self_attn.k_proj.weight": (NUM_KEYS, WIDTH),
    "model.layers.0.self_attn.k_proj.bias": (NUM_KEYS,),
    "model.layers.0.self_attn.v_proj.weight": (NUM_KEYS, WIDTH),
    "model.layers.0.self_attn.v_proj.bias": (NUM_KEYS,),
    "model.layers.0.mlp.gate_proj.weight": (INNER, WIDTH),
    "model.layers.0.mlp.up_proj.weight": (INNER, WIDTH),
    "model.norm.weight": (WIDTH,),
    "model.scale": (),
    "visual.attn.qkv.weight": (3 * WIDTH, WIDTH),
}


class Mapper:
    """Of names in the checkpoint to names in the model."""

    def apply_list(self, names):
        return ["language_model." + name if name.startswith(("model.", "lm_head.")) else name for name in names]


class Block(nn.Module):
    """Parameters of these shapes, with values of their own; a dot in a name is a module."""

    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            first, _, rest = name.partition(".")
            if rest:
                inner = {key.partition(".")[2]: each for key, each in shapes.items() if key.startswith(f"{first}.")}
                if not hasattr(self, first):
                    setattr(self, first, Block(inner))
            else:
                self.register_parameter(first, nn.Parameter(torch.full(shape, -1.0)))


class FakeVllmModel(Block):
    packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
        "qkv": ["qkv"],
    }
    hf_to_vllm_mapper = Mapper()

    def __init__(self, **extra):
        layer = "language_model.model.layers.0"
        super().__init__(
            {
                "language_model.model.embed_tokens.weight": (PADDED_WORDS, WIDTH),
                f"{layer}.self_attn.qkv_proj.weight": (WIDTH + 2 * NUM_KEYS, WIDTH),
                f"{layer}.self_attn.qkv_proj.bias": (WIDTH + 2 * NUM_KEYS,),
                f"{layer}.mlp.gate_up_proj.weight": (2 * INNER, WIDTH),
                "language_model.model.norm.weight": (WIDTH,),
                "language_model.model.scale": (),
                "visual.attn.qkv.weight": (3 * WIDTH, WIDTH),
                **extra,
            }
        )
        self.loaded = []

    def load_weights(self, weights):
        self.loaded += [(name, tensor.clone()) for name, tensor in weights]


@pytest.fixture(autouse=True)
def world_size(monkeypatch):
    """Of tensor parallelism; vLLM's own needs a running engine."""
    sizes = [1]
    monkeypatch.setattr(parameters, "_world_size", lambda: sizes[-1])
    return sizes


def make_layout(shapes=CHECKPOINT, *, dtype="float32", bucket_bytes=4096):
    return lay_out(
        [TensorSpec(name=name, dtype=dtype, shape=shape) for name, shape in shapes.items()], bucket_bytes=bucket_bytes
    )


def make_version(layout, seed=0):
    """Buckets of random tensors, and the tensors by name."""
    generator = torch.Generator().manual_seed(seed)
    buckets = [torch.zeros(size, dtype=torch.uint8) for size in layout.bucket_sizes]
    tensors = {}
    for slot in layout.slots:
        tensors[slot.tensor.name] = slot_tensor(buckets[slot.bucket], slot)
        tensors[slot.tensor.name].copy_(torch.randn(slot.tensor.shape, generator=generator))
    return buckets, tensors


def prove(views, buckets):
    for index, bucket in enumerate(buckets):
        views.prove(index, views.places(index, bucket).tensors)


def load(model, layout, buckets):
    views = ParameterViews(model, layout)
    for index, bucket in enumerate(buckets):
        views.load(index, views.places(index, bucket))
    return views


def without(shapes, *names):
    return {name: shape for name, shape in shapes.items() if name not in names}


@pytest.mark.parametrize("bucket_bytes", [256, 4096, 1 << 20])
def test_every_tensor_comes_to_its_rows_and_padding_stays(bucket_bytes):
    layout, model = make_layout(bucket_bytes=bucket_bytes), FakeVllmModel()
    buckets, tensors = make_version(layout)
    views = load(model, layout, buckets)
    prove(views, buckets)
    assert views.is_whole

    held = dict(model.named_parameters())
    layer, given = "language_model.model.layers.0", "model.layers.0"
    for leaf in ("weight", "bias"):
        stack = [tensors[f"{given}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
        assert torch.equal(held[f"{layer}.self_attn.qkv_proj.{leaf}"], torch.cat(stack))
    stack = [tensors[f"{given}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(held[f"{layer}.mlp.gate_up_proj.weight"], torch.cat(stack))
    embedding = held["language_model.model.embed_tokens.weight"]
    assert torch.equal(embedding[:WORDS], tensors["model.embed_tokens.weight"])
    assert (embedding[WORDS:] == -1).all(), "the padding of the vocabulary"
    assert torch.equal(held["language_model.model.norm.weight"], tensors["model.norm.weight"])
    assert torch.equal(held["language_model.model.scale"], tensors["model.scale"])
    assert torch.equal(held["visual.attn.qkv.weight"], tensors["visual.attn.qkv.weight"]), "stacked already"


def test_the_order_in_a_stack_is_the_models_and_not_that_of_the_checkpoint():
    layout, model = make_layout(dict(reversed(CHECKPOINT.items()))), FakeVllmModel()
    buckets, tensors = make_version(layout)
    prove(load(model, layout, buckets), buckets)
    rows = dict(model.named_parameters())["language_model.model.layers.0.self_attn.qkv_proj.bias"]
    assert torch.equal(rows, torch.cat([tensors[f"model.layers.0.self_attn.{part}_proj.bias"] for part in "qkv"]))


def test_parameters_are_written_in_place_and_stay_trainable_leaves():
    """An engine's compiled graphs keep their addresses."""
    layout, model = make_layout(), FakeVllmModel()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    load(model, layout, make_version(layout)[0])
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before


@pytest.mark.parametrize(
    "fixed", [(), ("language_model.model.norm.weight", "language_model.model.embed_tokens.weight")]
)
def test_a_spare_set_is_loaded_beside_the_parameters_and_taken_over_whole(fixed):
    layout, model = make_layout(bucket_bytes=256), FakeVllmModel()
    model.head = model.language_model.model.embed_tokens  # tied
    views = ParameterViews(model, layout)
    views.make_spare(set(fixed))
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    held = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for version in range(3):
        buckets, _ = make_version(layout, seed=version)
        for index, bucket in enumerate(buckets):
            views.load(index, views.places(index, bucket))
        assert all(torch.equal(parameter, held[name]) for name, parameter in model.named_parameters())
        views.take_over()
        alone = FakeVllmModel()
        load(alone, layout, buckets)
        held = dict(alone.named_parameters())
        assert all(torch.equal(parameter, held[name]) for name, parameter in model.named_parameters())
        assert model.head.weight is model.language_model.model.embed_tokens.weight
        moved = {name for name, parameter in model.named_parameters() if parameter.data_ptr() != before[name]}
        assert moved == (set(before) - set(fixed) if version % 2 == 0 else set())


def test_a_parameter_stays_where_it_is_if_its_memory_is_known_elsewhere():
    model = FakeVllmModel()
    assert fixed_parameters(model, may_move=True) == set()
    model.kept = model.visual.attn.qkv.weight.view(-1)
    assert fixed_parameters(model, may_move=True) == {"visual.attn.qkv.weight"}
    assert fixed_parameters(model, may_move=False) == {name for name, _ in model.named_parameters()}


def test_a_tied_head_is_one_parameter_under_the_name_of_the_embedding():
    model, layout = FakeVllmModel(**{"language_model.lm_head.weight": (PADDED_WORDS, WIDTH)}), make_layout()
    model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    buckets, tensors = make_version(layout)
    prove(load(model, layout, buckets), buckets)
    assert torch.equal(model.language_model.lm_head.weight[:WORDS], tensors["model.embed_tokens.weight"])


def test_an_untied_head_has_to_come_from_the_learner():
    head = {"language_model.lm_head.weight": (PADDED_WORDS, WIDTH)}
    with pytest.raises(WeightSyncError, match=r"0 of 16 rows of .*language_model\.lm_head\.weight"):
        ParameterViews(FakeVllmModel(**head), make_layout())
    layout, model = make_layout({**CHECKPOINT, "lm_head.weight": (WORDS, WIDTH)}), FakeVllmModel(**head)
    buckets, tensors = make_version(layout)
    prove(load(model, layout, buckets), buckets)
    assert torch.equal(model.language_model.lm_head.weight[:WORDS], tensors["lm_head.weight"])


def test_a_tensor_without_a_parameter_is_named():
    layout = make_layout({**CHECKPOINT, "model.layers.1.norm.weight": (WIDTH,)})
    with pytest.raises(
        WeightSyncError,
        match=r"model\.layers\.1\.norm\.weight has no parameter language_model\.model\.layers\.1\.norm\.weight",
    ):
        ParameterViews(FakeVllmModel(), layout)


@pytest.mark.parametrize(
    ("missing", "parameter", "held"),
    [
        ("model.norm.weight", "language_model.model.norm.weight", "0 of 4"),
        ("model.scale", "language_model.model.scale", "0 of 1"),
        (
            "model.layers.0.self_attn.v_proj.weight",
            "language_model.model.layers.0.self_attn.qkv_proj.weight",
            f"{WIDTH + NUM_KEYS} of {WIDTH + 2 * NUM_KEYS}",
        ),
        (
            "model.layers.0.self_attn.q_proj.weight",
            "language_model.model.layers.0.self_attn.qkv_proj.weight",
            f"{2 * NUM_KEYS} of {WIDTH + 2 * NUM_KEYS}",
        ),
        ("model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.gate_up_proj.weight", "6 of 12"),
        ("model.embed_tokens.weight", "language_model.model.embed_tokens.weight", "0 of 16"),
    ],
)
def test_rows_that_nothing_is_sent_for_are_named(missing, parameter, held):
    with pytest.raises(WeightSyncError, match=f"{held} rows of the engine's parameter {parameter} come from"):
        ParameterViews(FakeVllmModel(), make_layout(without(CHECKPOINT, missing)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_than_the_engines_is_refused(dtype):
    with pytest.raises(
        WeightSyncError, match=rf"model\.embed_tokens\.weight is {dtype} \(10, 4\), its place .* float32 \(10, 4\)"
    ):
        ParameterViews(FakeVllmModel(), make_layout(dtype=dtype))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", (PADDED_WORDS + 1, WIDTH)),
        ("model.norm.weight", (WIDTH + 1,)),
        ("visual.attn.qkv.weight", (3 * WIDTH, WIDTH + 1)),
        ("model.layers.0.self_attn.v_proj.weight", (NUM_KEYS + 1, WIDTH)),
    ],
)
def test_a_tensor_that_does_not_fit_its_place_is_named(name, shape):
    with pytest.raises(WeightSyncError, match=rf"{name} is float32 \({shape[0]}, ?.*its place in the engine's model"):
        ParameterViews(FakeVllmModel(), make_layout({**CHECKPOINT, name: shape}))


@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_parameter_that_differs_from_what_arrived_is_named(name):
    layout, model = make_layout(), FakeVllmModel()
    buckets, tensors = make_version(layout)
    views = load(model, layout, buckets)
    tensors[name].view(-1)[-1] += 1
    with pytest.raises(WeightSyncError, match=f"^{name} differs in the engine"):
        prove(views, buckets)


def test_shards_are_left_to_vllms_own_loading(world_size):
    world_size.append(2)
    layout, model = make_layout(bucket_bytes=256), FakeVllmModel()
    buckets, tensors = make_version(layout)
    views = load(model, layout, buckets)
    assert not views.is_whole
    assert [name for name, _ in model.loaded] == list(CHECKPOINT)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.loaded)
    assert all((parameter == -1).all() for parameter in model.parameters()), "nothing is written beside it"
    prove(views, buckets)
