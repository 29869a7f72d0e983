"""Schedulers by name."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import loraweave
from loraweave import SceneError
from loraweave.cli import app
from loraweave.output import read_png_record
from loraweave.scene import Scene
from loraweave.schedulers import SCHEDULERS, scheduler_for, scheduler_name
from prepared import PROMPT
from tiny import tiny_pipeline


def draw(pipe, loras, **changes):
    return loraweave.compose(
        pipe, PROMPT, loras=loras, num_inference_steps=4, output_type="latent", progress=False,
        **{"method": "merge"} | changes,
    )  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_is_the_pipeline_with_that_scheduler(loras, name):
    pipe = tiny_pipeline()
    own = pipe.scheduler
    found = draw(pipe, loras, scheduler=name)
    assert pipe.scheduler is own
    pipe.scheduler = scheduler_for(name, own)
    expected = draw(pipe, loras)
    assert torch.equal(found.images, expected.images)
    assert found.info["base"] == expected.info["base"]
    assert found.info["base"]["scheduler"] == SCHEDULERS[name][0]


def test_each_name_is_another_sampler_with_the_bases_own_noise_schedule():
    own = tiny_pipeline().scheduler
    made = {name: scheduler_for(name, own) for name in SCHEDULERS}
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
    again = tmp_path / "two.png"
    result = generate("--from", out, "-o", again)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    assert read_png_record(again) == record
    wrong = generate(prompt, "--scheduler", "fast", "-o", tmp_path / "three.png")
    assert wrong.exit_code == 2
    assert "no scheduler 'fast'" in wrong.stderr
    assert not (tmp_path / "three.png").exists()
