"""Schedulers by name."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import loraweave
from loraweave import MethodError, SceneError
from loraweave.cli import app
from loraweave.denoise.loop import StepScheduler
from loraweave.output import read_png_record
from loraweave.scene import Scene
from loraweave.schedulers import SCHEDULERS, scheduler_for, scheduler_name
from prepared import PROMPT
from tiny import tiny_pipeline


def draw(pipe, loras, **changes):
    given = {"method": "merge", "num_inference_steps": 4, "output_type": "latent"}
    return loraweave.compose(pipe, PROMPT, loras=loras, progress=False, **given | changes)


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "timestep_spacing": "leading", "steps_offset": 1}  # fmt: skip
BY_HAND = {
    "ddim": lambda: DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **SCHEDULE),
    "pndm": lambda: PNDMScheduler(skip_prk_steps=True, **SCHEDULE),
    "lms": lambda: LMSDiscreteScheduler(**SCHEDULE),
    "euler": lambda: EulerDiscreteScheduler(**SCHEDULE),
    "euler_karras": lambda: EulerDiscreteScheduler(use_karras_sigmas=True, **SCHEDULE),
    "euler_a": lambda: EulerAncestralDiscreteScheduler(**SCHEDULE),
    "heun": lambda: HeunDiscreteScheduler(**SCHEDULE),
    "dpm++_2m": lambda: DPMSolverMultistepScheduler(**SCHEDULE),
    "dpm++_2m_karras": lambda: DPMSolverMultistepScheduler(use_karras_sigmas=True, **SCHEDULE),
    "dpm++_2m_sde": lambda: DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", **SCHEDULE
    ),
    "dpm++_2m_sde_karras": lambda: DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", use_karras_sigmas=True, **SCHEDULE
    ),
    "deis": lambda: DEISMultistepScheduler(**SCHEDULE),
    "unipc": lambda: UniPCMultistepScheduler(**SCHEDULE),
}
BASES = {
    "ddim": lambda: DDIMScheduler(**SCHEDULE),
    "pndm": lambda: PNDMScheduler(**SCHEDULE),
    "sde karras": BY_HAND["dpm++_2m_sde_karras"],
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_is_the_pipeline_with_that_scheduler_whatever_it_came_with(loras, name, base):
    pipe = tiny_pipeline()
    pipe.scheduler = own = BASES[base]()
    for steps in (1, 2, 3, 4):
        pipe.scheduler = own
        seed = {"generator": torch.Generator().manual_seed(1), "num_inference_steps": steps}
        found = draw(pipe, loras, scheduler=name, **seed)
        assert pipe.scheduler is own
        pipe.scheduler = BY_HAND[name]()
        seed["generator"].manual_seed(1)
        expected = draw(pipe, loras, **seed)
        assert torch.equal(found.images, expected.images)
        assert found.info["base"]["scheduler"] == type(pipe.scheduler).__name__


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_moves_the_latents_is_never_lost(name):
    """Moved before the third of six steps: the picture moves along, or it is an error."""
    own, ends = tiny_pipeline().scheduler, []
    if name == "heun":
        with pytest.raises(MethodError, match="such as dpm"):
            StepScheduler(scheduler_for(name, own), 6, torch.device("cpu"), None, moved=True)
        return
    for by in (0, 1):
        scheduler = StepScheduler(
            scheduler_for(name, own), 6, torch.device("cpu"), torch.Generator().manual_seed(0),
            moved=True,
        )  # fmt: skip
        z = scheduler.initial(torch.ones(1, 4, 8, 8, dtype=torch.float64))
        for i, t in enumerate(scheduler.timesteps):
            z = z + by * (i == 3)
            z = scheduler.step(0.1 * scheduler.scale(z, t), t, z)
        ends.append(z)
    assert (ends[1] - ends[0]).mean() > 0.5


def test_guided_methods_say_which_schedulers_lose_what_they_do(pipe, loras):
    for method, settings in (("clora", {}), ("attend_and_excite", {})):
        with pytest.raises(MethodError, match="HeunDiscreteScheduler takes its second"):
            draw(pipe, loras, method=method, settings=settings, scheduler="heun")
    draw(pipe, loras, method="clora", settings={"max_update_step": 0}, scheduler="heun")
    draw(pipe, loras, method="weave", scheduler="heun")


def test_each_name_is_another_sampler_with_the_bases_own_noise_schedule():
    own = tiny_pipeline().scheduler
    made = {name: scheduler_for(name, own) for name in SCHEDULERS}
    assert set(made) == set(BY_HAND)
    settings = {(type(one).__name__, str(dict(one.config))) for one in made.values()}
    assert len(settings) == len(SCHEDULERS)
    for one in made.values():
        torch.testing.assert_close(one.alphas_cumprod, own.alphas_cumprod)
        assert one.config.prediction_type == own.config.prediction_type
    assert isinstance(made["dpm++_2m"], DPMSolverMultistepScheduler)
    assert isinstance(made["unipc"], UniPCMultistepScheduler)
    assert made["dpm++_2m_karras"].config.use_karras_sigmas
    assert scheduler_for(None, own) is own


@given(st.sampled_from(sorted(SCHEDULERS)), st.data())
def test_names_are_read_as_a1111_and_comfyui_write_them(name, data):
    between = data.draw(st.sampled_from([" ", "_", "-", ""]))
    written = name.replace("_", between)
    written = data.draw(st.sampled_from([written, written.upper(), written.replace("++", "pp")]))
    assert scheduler_name(written) == name
    assert Scene(prompt="a dog", scheduler=written).scheduler == name


def test_names_of_other_programs():
    assert scheduler_name("DPM++ 2M Karras") == "dpm++_2m_karras"
    assert scheduler_name("uni_pc") == "unipc"
    assert scheduler_name("Euler a") == scheduler_name("euler_ancestral") == "euler_a"
    assert scheduler_name("dpmpp_2m_sde") == "dpm++_2m_sde"


@pytest.mark.parametrize("name", ["dpm", "", "eulr", "../euler"])
def test_an_unknown_name_is_an_error_that_lists_all(name):
    with pytest.raises(SceneError, match="there are: ddim"):
        Scene(prompt="a dog", scheduler=name)


def test_a_typing_error_is_guessed():
    with pytest.raises(SceneError, match="did you mean 'unipc'"):
        scheduler_name("unpic")


def test_the_command_line_records_it_and_draws_it_again(base_folder, lora_files, tmp_path):
    out = tmp_path / "one.png"
    model = [*(f"--lora={n}={p}" for n, p in lora_files.items()), "--device=cpu"]
    model += ["--base", str(base_folder)]
    prompt = "a [sks cat](cat) and a [zwx dog](dog)"

    def generate(*more):
        return CliRunner().invoke(app, ["generate", *model, "--quiet", *map(str, more)])

    result = generate(prompt, "--scheduler", "DPM++ 2M", "--steps", 2, "-o", out)
    assert result.exit_code == 0, result.output
    record = read_png_record(out)
    assert record["scene"]["scheduler"] == "dpm++_2m"
    assert record["base"]["scheduler"] == "DPMSolverMultistepScheduler"
    with Image.open(out) as image:
        assert "Sampler: DPM++ 2M," in image.info["parameters"]
    again = tmp_path / "two.png"
    result = generate("--from", out, "-o", again)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    assert read_png_record(again) == record
    wrong = generate(prompt, "--scheduler", "fast", "-o", tmp_path / "three.png")
    assert wrong.exit_code == 2
    assert "no scheduler 'fast'" in wrong.stderr
    assert not (tmp_path / "three.png").exists()
