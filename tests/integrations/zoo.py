"""Published models, each built from its name without weights, and how each is distilled."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import cid

B, C = 2, 7


class Model(NamedTuple):
    """A model and its input."""

    name: str
    size: int = 64
    """Height and width of the images."""
    layers: tuple[str, ...] | None = None
    """Its layers, where it is refused without: what it yields is not a layer's output."""
    options: dict[str, Any] = {}  # noqa: RUF012  # nobody writes into it


def outcome(build: Callable[[], nn.Module], x: Any, layers: tuple[str, ...] | None) -> cid.Distiller:
    """Distil a model with itself as the teacher: what it yields, a step, what is predicted and what is shipped.

    Raises:
        AssertionError: Any of these is wrong.
        ValueError: The model is refused.
    """
    torch.manual_seed(0)
    student = build()
    options: dict[str, Any] = {"num_classes": C, "beta": 1.0, "gamma": 1.0, "warmup_epochs": 0}
    if layers is not None:
        options |= {"student_layer": layers, "teacher_layer": layers}
    distiller = cid.Distiller(student, copy.deepcopy(student), **options)
    distiller.criterion.bank.context.normal_()
    distiller(x, torch.arange(B) % C).loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in student.parameters())
    distiller.eval()
    seen: list[Tensor] = []
    distiller.criterion.head.register_forward_pre_hook(lambda _, args: seen.extend(args[:2]))
    z = distiller.predict(x)
    features, logits = seen
    with torch.no_grad():
        assert torch.equal(logits, _logits(student, x))
        shipped = _logits(distiller.student(), x)
    assert features.shape == (B, distiller.criterion.head.dim)
    torch.testing.assert_close(shipped, z, rtol=1e-4, atol=1e-4)
    return distiller


def _logits(model: nn.Module, x: Any) -> Tensor:
    output = model(**x) if isinstance(x, dict) else model(x)
    if isinstance(output, Tensor):
        return output
    members = output.values() if isinstance(output, dict) else output
    found: Tensor = next(value for value in members if value.shape == (B, C))
    return found


def images(size: int) -> Tensor:
    return torch.randn(B, 3, size, size, generator=torch.Generator().manual_seed(size))


def timm_model(model: Model) -> nn.Module:
    import timm

    options = {"pretrained": False, "num_classes": C} | model.options
    try:
        built: nn.Module = timm.create_model(model.name, img_size=model.size, **options)
    except TypeError:  # takes any
        built = timm.create_model(model.name, **options)
    return built


def torchvision_model(model: Model) -> nn.Module:
    import torchvision

    built: nn.Module = torchvision.models.get_model(model.name, weights=None, num_classes=C, **model.options)
    return built


SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}


def hugging_face_model(model: Model) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(model.options["config"])
    for part in (config, getattr(config, "vision_config", None)):
        sizes = {} if model.options.get("as it is") else SMALL
        for name, value in (sizes | {"image_size": model.size} | model.options).items():
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, value)
    config.num_labels = C
    built: nn.Module = getattr(transformers, model.name)(config)
    return built


def hugging_face_input(model: Model) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(model.size)
    if model.name.startswith("ImageGPT"):  # an image as tokens
        return {"input_ids": torch.randint(512, (B, model.size), generator=generator)}
    if model.name.startswith("Siglip2"):  # patches, of images of any shape
        patches = model.size // 16
        return {
            "pixel_values": torch.randn(B, patches * patches, 3 * 16 * 16, generator=generator),
            "pixel_attention_mask": torch.ones(B, patches * patches, dtype=torch.int64),
            "spatial_shapes": torch.full((B, 2), patches),
        }
    return {"pixel_values": images(model.size)}


TIMM = {
    "beit": Model("beit_base_patch16_224"),
    "byoanet": Model("halonet_h1", 256),
    "byobnet": Model("test_byobnet"),
    "cait": Model("cait_xxs24_224"),
    "coat": Model("coat_tiny"),
    "convit": Model("convit_tiny"),
    "convmixer": Model("convmixer_768_32"),
    "convnext": Model("test_convnext"),
    "cpubone": Model("cpubone_nano"),
    "crossvit": Model("crossvit_tiny_240", 240, layers=("head.0", "head.1")),
    "csatv2": Model("csatv2"),
    "cspnet": Model("cs3darknet_focus_s"),
    "cspnext": Model("cspnext_tiny"),
    "davit": Model("davit_tiny"),
    "deepseek_vit": Model("deepseek_vit_412m", 56, options={"depth": 1}),
    "deit": Model("deit_tiny_distilled_patch16_224", layers=("head", "head_dist")),
    "densenet": Model("densenet121"),
    "dla": Model("dla46x_c"),
    "dpn": Model("dpn48b"),
    "edgenext": Model("edgenext_xx_small"),
    "efficientformer": Model("efficientformer_l1", 224, layers=("head", "head_dist")),
    "efficientformer_v2": Model("efficientformerv2_s0", layers=("head", "head_dist")),
    "efficientnet": Model("test_efficientnet"),
    "efficientvim": Model("efficientvim_m1", layers=("heads.0", "heads.1", "heads.2", "heads.3")),
    "efficientvit_mit": Model("efficientvit_b0"),
    "efficientvit_msra": Model("efficientvit_m0"),
    "eva": Model("vit_tiny_patch16_dinov3_qkvb"),
    "fasternet": Model("fasternet_t0"),
    "fastvit": Model("fastvit_t8"),
    "focalnet": Model("focalnet_tiny_srf"),
    "gcvit": Model("gcvit_xxtiny"),
    "gemma4_vit": Model("gemma4_vit_167m", 96, options={"depth": 1}),
    "ghostnet": Model("ghostnet_050"),
    "hardcorenas": Model("hardcorenas_b"),
    "hgnet": Model("hgnetv2_b0"),
    "hiera": Model("hiera_tiny_224"),
    "hieradet_sam2": Model("sam2_hiera_tiny"),
    "hrnet": Model("hrnet_w18_small"),
    "iformer": Model("iformer_t"),
    "inception_next": Model("inception_next_atto"),
    "inception_resnet_v2": Model("inception_resnet_v2", 96),
    "inception_v3": Model("inception_v3", 96),
    "inception_v4": Model("inception_v4", 96),
    "lcnetv2": Model("lcnetv2_small"),
    "levit": Model("levit_128s", layers=("head.linear", "head_dist.linear")),
    "lowformer": Model("lowformer_b0"),
    "mambaout": Model("test_mambaout"),
    "maxxvit": Model("test_coatnet"),
    "metaformer": Model("poolformerv2_s12"),
    "mlp_mixer": Model("gmlp_ti16_224"),
    "mobilenetv3": Model("lcnet_035"),
    "mobilenetv5": Model("mobilenetv5_base"),
    "mobilevit": Model("mobilevit_xxs"),
    "mvitv2": Model("mvitv2_tiny"),
    "naflexvit": Model("naflexvit_base_patch16_parfac_gap"),
    "nasnet": Model("nasnetalarge"),
    "nest": Model("nest_tiny"),
    "nextvit": Model("nextvit_small"),
    "nfnet": Model("test_nfnet"),
    "pit": Model("pit_ti_224"),
    "pnasnet": Model("pnasnet5large", 96),
    "pvt_v2": Model("pvt_v2_b0"),
    "qwen3_vit": Model("qwen3_vit_88m"),
    "rdnet": Model("rdnet_tiny"),
    "regnet": Model("regnetx_002"),
    "repghost": Model("repghostnet_050"),
    "repvit": Model("repvit_m1", layers=("head.head.l", "head.head_dist.l")),
    "res2net": Model("res2next50"),
    "resnest": Model("resnest14d"),
    "resnet": Model("test_resnet"),
    "resnetv2": Model("resnetv2_50"),
    "rexnet": Model("rexnetr_100"),
    "selecsls": Model("selecsls42b"),
    "senet": Model("legacy_seresnet18"),
    "sequencer": Model("sequencer2d_s"),
    "shvit": Model("shvit_s1"),
    "sknet": Model("skresnet18"),
    "starnet": Model("starnet_s050"),
    "swiftformer": Model("swiftformer_xs", layers=("head", "head_dist")),
    "swin_transformer": Model("swin_tiny_patch4_window7_224"),
    "swin_transformer_v2": Model("swinv2_tiny_window8_256"),
    "swin_transformer_v2_cr": Model("swinv2_cr_tiny_ns_224"),
    "tiny_vit": Model("tiny_vit_5m_224"),
    "tnt": Model("tnt_s_legacy_patch16_224"),
    "tresnet": Model("tresnet_m"),
    "twins": Model("twins_pcpvt_small"),
    "vgg": Model("vgg11"),
    "visformer": Model("visformer_tiny"),
    "vision_transformer": Model("test_vit"),
    "vision_transformer_hybrid": Model("vit_tiny_r_s16_p8_224"),
    "vision_transformer_relpos": Model("vit_relpos_small_patch16_224"),
    "vision_transformer_sam": Model("samvit_base_patch16_224"),
    "vitamin": Model("vitamin_small_224"),
    "volo": Model("volo_d1_224", layers=("head",)),
    "vovnet": Model("ese_vovnet19b_slim"),
    "xception": Model("legacy_xception"),
    "xception_aligned": Model("xception41"),
    "xcit": Model("xcit_nano_12_p16_224"),
}
"""The smallest member of each family, or nearly so."""
TORCHVISION = [
    Model("alexnet"),
    Model("vgg11"),
    Model("vgg11_bn"),
    Model("resnet18"),
    Model("resnext50_32x4d"),
    Model("wide_resnet50_2"),
    Model("squeezenet1_0"),
    Model("squeezenet1_1"),
    Model("densenet121"),
    Model("inception_v3", 299, options={"init_weights": False}),
    Model("googlenet", options={"init_weights": False}),
    Model("shufflenet_v2_x0_5"),
    Model("mobilenet_v2"),
    Model("mobilenet_v3_small"),
    Model("mnasnet0_5"),
    Model("efficientnet_b0"),
    Model("efficientnet_v2_s"),
    Model("regnet_y_400mf"),
    Model("regnet_x_400mf"),
    Model("convnext_tiny"),
    Model("vit_b_32", options={"image_size": 64}),
    Model("swin_t"),
    Model("swin_v2_t"),
    Model("maxvit_t", 224, options={"input_size": (224, 224)}),
]
PERCEIVER = ("perceiver.decoder.decoder.final_layer",)
TINY = {"num_cross_attention_heads": 1, "num_self_attends_per_block": 1, "num_latents": 8, "d_latents": 32}
HUGGING_FACE = [
    Model("BeitForImageClassification", options={"config": "beit"}),
    Model("BitForImageClassification", options={"config": "bit"}),
    Model("CLIPForImageClassification", options={"config": "clip"}),
    Model("ConvNextForImageClassification", options={"config": "convnext", "as it is": True}),
    Model("ConvNextV2ForImageClassification", options={"config": "convnextv2", "as it is": True}),
    Model("CvtForImageClassification", options={"config": "cvt"}),
    Model("Data2VecVisionForImageClassification", options={"config": "data2vec-vision"}),
    Model("DeiTForImageClassification", options={"config": "deit"}),
    Model(
        "DeiTForImageClassificationWithTeacher",
        layers=("cls_classifier", "distillation_classifier"),
        options={"config": "deit"},
    ),
    Model("Dinov2ForImageClassification", options={"config": "dinov2"}),
    Model("Dinov2WithRegistersForImageClassification", options={"config": "dinov2_with_registers"}),
    Model("DonutSwinForImageClassification", 224, options={"config": "donut-swin"}),
    Model("EfficientNetForImageClassification", options={"config": "efficientnet"}),
    Model("FocalNetForImageClassification", options={"config": "focalnet"}),
    Model("HGNetV2ForImageClassification", options={"config": "hgnet_v2"}),
    Model("HieraForImageClassification", 224, options={"config": "hiera"}),
    Model("IJepaForImageClassification", options={"config": "ijepa"}),
    Model("ImageGPTForImageClassification", options={"config": "imagegpt"}),
    Model("LevitForImageClassification", options={"config": "levit"}),
    Model(
        "LevitForImageClassificationWithTeacher",
        layers=("classifier.linear", "classifier_distill.linear"),
        options={"config": "levit"},
    ),
    Model("MetaClip2ForImageClassification", options={"config": "metaclip_2"}),
    Model("MobileNetV1ForImageClassification", options={"config": "mobilenet_v1"}),
    Model("MobileNetV2ForImageClassification", options={"config": "mobilenet_v2"}),
    Model("MobileViTForImageClassification", options={"config": "mobilevit"}),
    Model("MobileViTV2ForImageClassification", options={"config": "mobilevitv2"}),
    Model("PPLCNetForImageClassification", options={"config": "pp_lcnet"}),
    Model("PerceiverForImageClassificationLearned", layers=PERCEIVER, options={"config": "perceiver"} | TINY),
    Model("PerceiverForImageClassificationFourier", 224, layers=PERCEIVER, options={"config": "perceiver"} | TINY),
    Model(
        "PerceiverForImageClassificationConvProcessing", 224, layers=PERCEIVER, options={"config": "perceiver"} | TINY
    ),
    Model("PoolFormerForImageClassification", options={"config": "poolformer"}),
    Model("PvtForImageClassification", options={"config": "pvt"}),
    Model("PvtV2ForImageClassification", options={"config": "pvt_v2"}),
    Model("RegNetForImageClassification", options={"config": "regnet"}),
    Model("ResNetForImageClassification", options={"config": "resnet"}),
    Model("SegformerForImageClassification", options={"config": "segformer"}),
    Model("SiglipForImageClassification", options={"config": "siglip"}),
    Model("Siglip2ForImageClassification", options={"config": "siglip2"}),
    Model("SwiftFormerForImageClassification", layers=("head", "dist_head"), options={"config": "swiftformer"}),
    Model("SwinForImageClassification", 224, options={"config": "swin"}),
    Model("Swinv2ForImageClassification", options={"config": "swinv2"}),
    Model("TextNetForImageClassification", options={"config": "textnet"}),
    Model("TimmWrapperForImageClassification", options={"config": "timm_wrapper"}),
    Model("ViTForImageClassification", options={"config": "vit"}),
    Model("ViTMSNForImageClassification", options={"config": "vit_msn"}),
]
