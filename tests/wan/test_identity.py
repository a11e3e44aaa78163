"""What is known of an expert, how it is known, and which two files are no pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from wanexperts.wan.checkpoint import (
    Checkpoint,
    check_pair,
    detect_transformer_config,
    identify,
    open_checkpoint,
    same_weights,
)
from wanexperts.wan.checkpoint.identity import FINGERPRINT, SAME_SHARE, agreement
from wanexperts.wan.config import T2V_A14B, TransformerConfig
from wanexperts.wan.files import TensorInfo

pytest.importorskip("diffusers")
pytest.importorskip("gguf")

from wanexperts.tests.parity import networks
from wanexperts.tests.parity.layouts import (
    Kind,
    Scaled,
    State,
    gguf_file,
    gguf_kind,
    plain,
    random_weights,
    single,
)

SMALL = TransformerConfig(dim=256, ffn_dim=256, num_heads=2, num_layers=1, text_dim=256)
A14B = T2V_A14B.transformer
T2V_1_3B = replace(A14B, dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
HIGH, LOW = "high_noise", "low_noise"
BF16, E4M3, E5M2 = torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2


def headers(
    path: str | Path, config: TransformerConfig = A14B, metadata: Mapping[str, str] | None = None
) -> Checkpoint:
    """An expert of which nothing but headers exists."""
    path = Path(path)
    infos = {
        key: TensorInfo(path, key, "BF16", shape)
        for key, shape in networks.expert_shapes(config).items()
    }
    return Checkpoint(
        path=path, kind="transformer", layout="official names, one file", container="safetensors",
        tensors=infos, quants={}, scales={}, metadata=metadata or {},
    )  # fmt: skip


@pytest.mark.parametrize("file", ["", "diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize(("folder", "role"), [("transformer", HIGH), ("transformer_2", LOW)])
def test_diffusers_folders_are_experts_only_with_a_boundary(tmp_path, folder, role, file):
    path = tmp_path / folder
    path.mkdir()
    path /= file
    known = identify(headers(path, metadata={"boundary_ratio": "0.875"}))
    assert (known.role, known.role_source, known.release) == (role, "folder", "Wan2.2")
    assert identify(headers(path)).role is None


def test_sizes_tell_what_they_can():
    assert identify(headers("wan2.2.safetensors", T2V_1_3B)).release == "Wan2.1"
    assert identify(headers("a.safetensors")).model == "Wan text-to-video"
    distilled = identify(headers("Wan2.2-Lightning-high.safetensors"))
    assert distilled.model == "Wan2.2 text-to-video distilled"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"in_dim": 36}, "an image-to-video expert"),
        ({"in_dim": 52}, "a Fun-Control expert"),
        ({"in_dim": 48, "out_dim": 48, "dim": 3072, "num_heads": 24}, "the TI2V-5B model"),
        ({"in_dim": 20}, "another model"),
    ],
)
def test_other_channels_are_named(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        identify(headers("a.safetensors", replace(A14B, **change)))


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("vace_patch_embedding.weight", "is a VACE model"),
        ("control_adapter.conv.weight", "is a camera-control model"),
        ("ref_conv.weight", "is a Fun-Control model"),
        ("img_emb.proj.0.bias", r"is a Wan2\.1 image-to-video model"),
        ("casual_audio_encoder.encoder.final_linear.weight", "is a speech-to-video model"),
        ("face_adapter.fuser_blocks.0.k_norm.weight", "is an Animate model"),
    ],
)
def test_other_variants_are_named(key, sentence):
    expert = headers("a.safetensors")
    info = TensorInfo(expert.path, key, "BF16", (1,))
    with pytest.raises(ValueError, match=sentence):
        detect_transformer_config(replace(expert, tensors={**expert.tensors, key: info}))


# The same expert twice.

ROUTES = {
    "fp32": plain(torch.float32),
    "fp16": plain(torch.float16),
    "bf16": plain(BF16),
    "plain e4m3fn": plain(E4M3),
    "plain e5m2": plain(E5M2),
    "fp8 scaled": Scaled(dtype=E4M3, rest=torch.float16),
    "int8": Scaled(dtype=torch.int8, leaf="weight_scale", shape=(-1, 1)),
}


def write_all(folder: Path, state: State) -> dict[str, Checkpoint]:
    """One expert as many files in many precisions and packings, some made of others."""
    folder.mkdir()
    paths = {
        name: single(folder / f"{number}.safetensors", state, encode).path
        for number, (name, encode) in enumerate(ROUTES.items())
    }
    for name in ("fp16", "bf16"):
        narrow = {
            key: t.to({"fp16": torch.float16, "bf16": BF16}[name]) for key, t in state.items()
        }
        for other in ("fp16", "bf16", "plain e4m3fn"):
            path = folder / f"{name}-{other}.safetensors"
            paths[f"{other} of {name}"] = single(path, narrow, ROUTES[other]).path
    for kind in (Kind.Q8_0, Kind.Q4_0):
        paths[kind.name] = gguf_file(
            folder / f"{kind.name}.gguf", "wan", state, gguf_kind(kind)
        ).path
    networks.diffusers_expert(SMALL, state).save_pretrained(folder / "diffusers")
    paths["diffusers"] = folder / "diffusers"
    return {name: open_checkpoint(path, "transformer") for name, path in paths.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[dict[str, Checkpoint]]:
    """Two experts, each as many files."""
    folder = tmp_path_factory.mktemp("identity")
    shapes = networks.expert_shapes(SMALL)
    return [write_all(folder / str(seed), random_weights(shapes, seed)) for seed in (1, 2)]


def test_one_expert_is_known_in_any_two_forms(files):
    """Where both keep the small tensors in 16 bits or more; fp8 alone tells nothing."""
    unlike = [
        pair
        for pair in combinations(files[0], 2)
        if same_weights(*(files[0][n] for n in pair)) == any("plain" in n for n in pair)
    ]
    assert unlike == []


def test_an_expert_trained_on_in_plain_fp8_is_not_called_the_same(tmp_path):
    """Moved by 2% of each weight, which fp8 hides in part."""
    state = random_weights(networks.expert_shapes(SMALL), 1)
    experts = [
        open_checkpoint(
            single(
                tmp_path / f"{n}.safetensors", {k: t * f for k, t in state.items()}, plain(E4M3)
            ).path
        )
        for n, f in enumerate((1, 1.02))
    ]
    assert not same_weights(*experts)


def test_two_experts_are_two_in_any_form(files):
    mistaken = [
        pair for pair in product(*files) if same_weights(files[0][pair[0]], files[1][pair[1]])
    ]
    assert mistaken == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16], ids=str)
def test_an_expert_trained_on_is_another(dtype, record_property):
    """One that moved by 1% of each weight, far less than training moves it."""
    state = random_weights(networks.expert_shapes(SMALL), 1)
    generator = torch.Generator().manual_seed(0)
    shares = []
    for key in FINGERPRINT:
        moved = state[key] * (1 + 0.01 * torch.randn(state[key].shape, generator=generator))
        shares.append(agreement(state[key].to(dtype), moved.to(dtype)))
    record_property("identity_agreement_of_an_expert_moved_by_1_percent", max(shares))
    assert max(shares) < 0.7 < SAME_SHARE  # 0.61


def test_unlike_or_whole_tensors_do_not_agree():
    assert agreement(torch.ones(3), torch.ones(4)) == 0
    assert agreement(torch.ones(3), torch.ones(3, dtype=torch.int8)) == 0


def test_two_names_of_the_same_weights_are_refused(files):
    high = replace(files[0]["fp16"], path=Path("wan2.2_high_noise.safetensors"))
    low = replace(files[0]["fp8 scaled"], path=Path("wan2.2_low_noise.safetensors"))
    with pytest.raises(ValueError, match="hold the same weights under two names; choose the other"):
        check_pair(high, low)
    assert len(check_pair(high, low, allow_mismatch=True)) == 1
    check_pair(high, replace(files[1]["bf16"], path=low.path))


def test_one_file_twice(files, tmp_path):
    expert = files[0]["fp16"]
    link = tmp_path / "other_name.safetensors"
    link.symlink_to(expert.path)
    for other in (expert, open_checkpoint(link)):
        with pytest.raises(ValueError, match="was given for both experts; choose the other file"):
            check_pair(expert, other)
        assert len(check_pair(expert, other, allow_mismatch=True)) == 1


# Pairs that are none, by what their headers say. The files are two different experts.


@pytest.fixture
def pair(files):
    """Two experts under given names."""

    def named(
        high: str, low: str, /, **metadata: Mapping[str, str]
    ) -> tuple[Checkpoint, Checkpoint]:
        return tuple(
            replace(each["bf16"], path=Path(name), metadata=metadata.get(part, {}))
            for part, name, each in zip(("high", "low"), (high, low), files, strict=True)
        )

    return named


@pytest.mark.parametrize(
    ("high", "low", "metadata"),
    [
        ("a_low_noise.safetensors", "a_high_noise.safetensors", {}),
        ("A14B-LOW-4steps.safetensors", "A14B-HIGH-4steps.safetensors", {}),
        ("low_noise_model/x.safetensors", "high_noise_model/x.safetensors", {}),
        ("a.safetensors", "b.safetensors", {"high": {"wan_role": LOW}, "low": {"wan_role": HIGH}}),
    ],
)
def test_swapped_experts_are_refused(pair, high, low, metadata):
    experts = pair(high, low, **metadata)
    with pytest.raises(ValueError, match=r"the experts are swapped: .* exchange the files"):
        check_pair(*experts)
    assert len(check_pair(*experts, allow_mismatch=True)) == 1
    assert check_pair(*reversed(experts)) == []


@pytest.mark.parametrize("header", [HIGH, LOW])
def test_a_header_against_its_name_is_refused(pair, header):
    other = {HIGH: LOW, LOW: HIGH}[header]
    mine, theirs = (role.partition("_")[0] for role in (header, other))
    files = {header: f"a_{theirs}.safetensors", other: "b.safetensors"}
    experts = pair(files[HIGH], files[LOW], **{mine: {"wan_role": header}})
    sentence = f"says {theirs} noise in its name and {mine} noise in its header; give it the name"
    with pytest.raises(ValueError, match=sentence):
        check_pair(*experts)
    assert len(check_pair(*experts, allow_mismatch=True)) == 1
    swapped = check_pair(*reversed(experts), allow_mismatch=True)
    assert sentence in swapped[0]
    assert "other expert by its header" in swapped[1]


@pytest.mark.parametrize(
    ("high", "low", "sentence"),
    [
        ("a_high.safetensors", "b_high.safetensors",
         r"b_high\.safetensors is the other expert by its name; choose a low-noise file there"),
        ("a_low.safetensors", "b_low.safetensors",
         r"a_low\.safetensors is the other expert by its name; choose a high-noise file there"),
        ("a.safetensors", "high_noise_model/b.safetensors",
         r"b\.safetensors is the other expert by its folder"),
        ("wan2.2_t2v_high_noise.safetensors", "wan2.1_t2v_14B.safetensors",
         r"is Wan2\.2 text-to-video and wan2\.1_t2v_14B\.safetensors Wan2\.1 text-to-video; "
         "choose two experts of one release"),
        ("high_noise_model/a.safetensors", "wan2.1_t2v_low_noise.safetensors", "of one release"),
        ("wan2.2_high_noise.safetensors", "low_noise_model/distill_model.safetensors",
         r"distill_model\.safetensors is distilled for few steps by its name and "
         r"wan2\.2_high_noise\.safetensors is not; choose two experts that are both distilled"),
        ("a_HIGH_4steps.safetensors", "a_LOW.safetensors", "a_HIGH_4steps.* is distilled"),
    ],
)  # fmt: skip
def test_mixed_experts_are_refused(pair, high, low, sentence):
    experts = pair(high, low)
    with pytest.raises(ValueError, match=sentence):
        check_pair(*experts)
    assert len(check_pair(*experts, allow_mismatch=True)) == 1


@pytest.mark.parametrize(
    ("high", "low"),
    [
        ("a.safetensors", "b.safetensors"),
        ("a_high.safetensors", "b.safetensors"),
        ("a.safetensors", "b_low.safetensors"),
        ("high_noise_model/distill_model.safetensors", "low_noise_model/distill_model.safetensors"),
    ],
)
def test_what_may_be_a_pair_is_one(pair, high, low):
    assert check_pair(*pair(high, low)) == []


@pytest.mark.parametrize(
    "change", [{"num_layers": 30}, {"ffn_dim": 8960}, {"dim": 1536, "num_heads": 12}], ids=str
)
def test_mixed_sizes_are_refused(change):
    experts = headers("a_high.safetensors"), headers("a_low.safetensors", replace(A14B, **change))
    with pytest.raises(ValueError, match=r"width .* layers; choose two experts of one model"):
        check_pair(*experts)
    assert check_pair(*experts, allow_mismatch=True)


def test_no_text_encoder_fits_two_widths_whatever_is_allowed():
    other = headers("a_low.safetensors", replace(A14B, text_dim=2048))
    for allow in (False, True):
        with pytest.raises(ValueError, match="no text encoder fits both"):
            check_pair(headers("a_high.safetensors"), other, allow_mismatch=allow)
