"""What a published network says of itself: the `ss_*` keys that the hosts and trainers read, and `modelspec.*` 1.0.1.

Readers show `ss_base_model_version` as the base, `ss_tag_frequency` as tags, and know a file by `ss_output_name`, which
therefore is the file's stem. Headers are read in whole by file lists, so the tags are cut before they make one large.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from .config import ObjectiveConfig, RunConfig
from .data.captions import split_tags
from .data.sample import Sample
from .timesteps import resolved

MAX_TAGS_PER_FOLDER = 2000

# as sd-scripts writes them and the WebUI reads them ("sdxl_..."); sd-scripts gives only a size for Stable Diffusion 3
_BASE_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "sd3": "sd3", "flux": "flux1"}
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3",
    "flux": "flux-1",
}
# whose names of layers the file has, in the words of the specification
_IMPLEMENTATIONS = {
    "sdxl": "https://github.com/Stability-AI/generative-models",
    "flux": "https://github.com/black-forest-labs/flux",
}


def network_metadata(
    config: RunConfig,
    samples: Sequence[Sample],
    *,
    family: str,
    prediction: str,
    model_info: Mapping[str, str],
    network: Mapping[str, str],
    num_steps: int,
    created: str,
) -> dict[str, str]:
    """What is the same for each checkpoint of a run. `created` (ISO 8601) is a fact of the run, not of the save.

    `model_info["variant"]`, where a host knows it, is the model within its family: "medium", "5-large", "dev".
    """
    counts: dict[str, Counter[str]] = {}
    folders: dict[str, dict[str, int]] = {}
    buckets: Counter[tuple[int, int]] = Counter()
    for sample in samples:
        concept = config.data.concepts[sample.concept]
        folder = f"{sample.repeats}_{Path(concept.folder).name}"
        counts.setdefault(folder, Counter()).update(tag for tag in split_tags(sample.caption) if tag)
        folders.setdefault(folder, {"n_repeats": sample.repeats, "img_count": 0})["img_count"] += 1
        buckets[sample.bucket] += sample.repeats
    bucket_info = {
        str(i): {"resolution": list(bucket), "count": count}
        for i, (bucket, count) in enumerate(sorted(buckets.items()))
    }
    triggers = [c.trigger for c in config.data.concepts if c.trigger]
    resolution = config.data.resolution
    metadata = {
        "ss_base_model_version": _BASE_VERSIONS.get(family, family),
        "ss_v2": str(family == "sd2"),
        "ss_sd_model_name": model_info.get("name", ""),
        "ss_sd_model_hash": model_info.get("sha256", "")[:10],
        "ss_new_sd_model_hash": model_info.get("sha256", ""),
        "ss_clip_skip": model_info.get("clip_skip", "1"),
        "ss_seed": str(config.loop.seed),
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_batch_size_per_device": str(config.loop.batch_size),
        "ss_total_batch_size": str(config.loop.batch_size * config.loop.accumulate),
        "ss_gradient_accumulation_steps": str(config.loop.accumulate),
        "ss_gradient_checkpointing": str(config.loop.block_checkpointing),
        "ss_mixed_precision": {"fp32": "no"}.get(config.loop.compute_dtype, config.loop.compute_dtype),
        "ss_optimizer": config.optimizer.name,
        "ss_max_grad_norm": str(config.optimizer.clip_norm),
        "ss_learning_rate": config.rate.schedule,
        "ss_unet_lr": config.rate.schedule,
        "ss_text_encoder_lr": config.rate.text_encoder or config.rate.schedule,
        "ss_lr_scheduler": config.rate.schedule,
        "ss_max_train_steps": str(num_steps),
        "ss_num_train_images": str(
            sum(s.repeats for s in samples if not config.data.concepts[s.concept].regularization)
        ),
        "ss_num_reg_images": str(sum(s.repeats for s in samples if config.data.concepts[s.concept].regularization)),
        "ss_dataset_dirs": json.dumps(folders, ensure_ascii=False),
        "ss_tag_frequency": json.dumps(
            {folder: dict(tags.most_common(MAX_TAGS_PER_FOLDER)) for folder, tags in counts.items()}, ensure_ascii=False
        ),
        "ss_bucket_info": json.dumps({"buckets": bucket_info}),
        "ss_shuffle_caption": str(config.data.shuffle_tags),
        "ss_keep_tokens": str(config.data.keep_tags),
        "ss_caption_dropout_rate": str(config.data.caption_dropout),
        "ss_caption_tag_dropout_rate": str(config.data.tag_dropout),
        "ss_flip_aug": str(config.data.flip),
        "ss_prior_loss_weight": str(config.data.prior_weight),
        "ss_noise_offset": str(config.objective.noise_offset or None),
        "ss_multires_noise_iterations": str(config.objective.multires_iterations or None),
        "ss_multires_noise_discount": str(config.objective.multires_discount),
        "ss_ip_noise_gamma": str(config.objective.input_perturbation or None),
        "ss_zero_terminal_snr": str(config.objective.zero_terminal_snr),
        "ss_min_snr_gamma": str(config.objective.min_snr_gamma if config.objective.weighting == "min_snr" else None),
        "ss_debiased_estimation": str(config.objective.weighting == "debiased"),
        "ss_loss_type": config.objective.loss,
        "ss_huber_schedule": config.objective.huber_schedule,
        "ss_huber_c": str(config.objective.huber_delta),
        "ss_huber_scale": "1.0",
        **(_flow(config.objective, family) if prediction == "flow" else {}),
        **network,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{_architecture(family, prediction, model_info.get('variant', ''))}/lora",
        "modelspec.implementation": _IMPLEMENTATIONS.get(family, "diffusers"),
        "modelspec.title": config.name,
        "modelspec.date": created,
        "modelspec.resolution": f"{resolution}x{resolution}",
    }
    if prediction in ("epsilon", "v"):  # the specification knows no others
        metadata["modelspec.prediction_type"] = prediction
    if triggers:
        metadata["modelspec.trigger_phrase"] = ", ".join(triggers)
    return metadata


def _architecture(family: str, prediction: str, variant: str) -> str:
    if family == "sd2" and prediction == "v":
        return "stable-diffusion-v2-768-v"
    name = _ARCHITECTURES.get(family, family)
    return f"{name}-{variant}" if variant and family in ("sd3", "flux") else name


def _flow(objective: ObjectiveConfig, family: str) -> dict[str, str]:
    """What sd-scripts says of the timesteps of a flow model."""
    objective = resolved(objective, family)
    sampling = {"uniform": "uniform", "mode": "sigma"}.get(objective.timesteps, "sigmoid")
    if sampling == "sigmoid" and objective.shift_by_resolution:
        sampling = "flux_shift"
    elif sampling == "sigmoid" and objective.timestep_shift != 1:
        sampling = "shift"
    # one name there for the distribution of t and for the weight
    scheme = "cosmap" if objective.weighting == "cosmap" else "mode" if objective.timesteps == "mode" else "none"
    if family == "sd3" and scheme == "none" and objective.timesteps == "logit_normal":
        scheme = "logit_normal"
    metadata = {
        "ss_timestep_sampling": sampling,
        "ss_discrete_flow_shift": str(objective.timestep_shift),
        "ss_logit_mean": str(objective.logit_mean),
        "ss_logit_std": str(objective.logit_std),
        "ss_sigmoid_scale": str(objective.logit_std),
        "ss_mode_scale": str(objective.mode_scale),
        "ss_weighting_scheme": scheme,
        "ss_model_prediction_type": "raw",
    }
    return metadata | ({"ss_guidance_scale": str(objective.guidance)} if family == "flux" else {})


def checkpoint_metadata(run: Mapping[str, str], stem: str, step: int, epoch: int) -> dict[str, str]:
    """The metadata of one checkpoint: the run's, the file's own name, and how far it came."""
    return {**run, "ss_output_name": stem, "ss_steps": str(step), "ss_epoch": str(epoch)}
