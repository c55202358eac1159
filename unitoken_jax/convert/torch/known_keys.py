"""What settings files may say besides the sizes that configs.py reads.

FIXED: by key, the values that stand for what is computed here; any other value is refused. HARMLESS: keys
that change nothing that is computed here, whatever their value. A key in neither is refused by name.
"""

from collections.abc import Mapping

Fixed = Mapping[str, tuple]

# Of every config.json that `transformers` writes (PretrainedConfig of 4.57, November 2025): names, ids,
# output and decoding options of its own, and where the file is from.
_ALL_HARMLESS = frozenset(
    {
        *("_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_from_model_config"),
        *("_name_or_path", "architectures", "attn_implementation", "bad_words_ids", "begin_suppress_tokens"),
        *("bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id", "diversity_penalty"),
        *("do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id"),
        *("exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id"),
        *("forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_factor"),
        *("initializer_range", "is_decoder", "label2id", "length_penalty", "max_length", "min_length"),
        *("name_or_path", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels"),
        *("num_return_sequences", "output_attentions", "output_hidden_states", "output_scores"),
        *("pad_token_id", "prefix", "problem_type", "remove_invalid_values", "repetition_penalty"),
        *("return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens"),
        *("task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder"),
        *("tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript"),
        *("transformers_version", "typical_p", "use_bfloat16", "use_cache"),
    }
)
_ALL_FIXED: Fixed = {
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
}

DECODER_FIXED: Fixed = {
    **_ALL_FIXED,
    "attention_bias": (False,),
    "attention_dropout": (0.0,),
    "hidden_act": ("silu", "swish"),
    "mask_image_logits": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
}
# Read elsewhere (architectures, tie_word_embeddings, vq_config), of training, where it is set anew
# (z_loss_weight), or of how the same product is computed (pretraining_tp).
DECODER_HARMLESS = _ALL_HARMLESS | {
    *("image_token_id", "max_position_embeddings", "model_type", "pretraining_tp", "vocabulary_map"),
    *("vq_config", "z_loss_weight"),
}
ROPE_FIXED: Fixed = {"partial_rotary_factor": (1.0,), "rope_type": ("default",), "type": ("default",)}

# Of a full model's file, beside its towers.
SIGLIP_FIXED: Fixed = {**_ALL_FIXED, "model_type": ("siglip",)}
SIGLIP_HARMLESS = _ALL_HARMLESS | {"text_config"}
VISION_FIXED: Fixed = {
    **_ALL_FIXED,
    "attention_dropout": (0.0,),
    "hidden_act": ("gelu_pytorch_tanh",),
    "model_type": ("siglip_vision_model",),
    "num_channels": (3,),
}
VISION_HARMLESS = _ALL_HARMLESS | {"projection_size", "vision_use_head"}

PREPROCESSOR_FIXED: Fixed = {
    "do_center_crop": (False, None),
    "do_normalize": (True,),
    "do_pad": (False, None),
    "do_rescale": (True,),
    "do_resize": (True,),
    "feature_extractor_type": ("SiglipImageProcessor",),
    "image_mean": ([0.5, 0.5, 0.5],),
    "image_processor_type": (
        *("SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil"),
    ),
    "image_std": ([0.5, 0.5, 0.5],),
    "resample": (3,),
}
# How arrays are handed over; every image is made RGB here.
PREPROCESSOR_HARMLESS = {
    *("_processor_class", "data_format", "default_to_square", "device", "disable_grouping"),
    *("do_convert_rgb", "input_data_format", "processor_class", "return_tensors"),
}

# Of a `vq_config` in config.json.
VQ_FIXED: Fixed = {
    **_ALL_FIXED,
    "double_latent": (False,),
    "dropout": (0.0,),
    "in_channels": (3,),
    "out_channels": (3,),
}
VQ_HARMLESS = _ALL_HARMLESS | {"attn_resolutions", "model_type"}
# Of the `ddconfig` of a vqgan.yaml, and of the `params` around it: those train the VQ-GAN.
DDCONFIG_FIXED: Fixed = {
    "double_z": (False,),
    "dropout": (0.0,),
    "give_pre_end": (False,),
    "in_channels": (3,),
    "out_ch": (3,),
    "resamp_with_conv": (True,),
    "tanh_out": (False,),
    "use_linear_attn": (False,),
    "use_timestep": (False,),
}
DDCONFIG_HARMLESS = {"attn_resolutions"}
VQ_PARAMS_HARMLESS = {
    *("ckpt_path", "colorize_nlabels", "ignore_keys", "image_key", "lossconfig", "lr_g_factor", "monitor"),
    *("sane_index_shape", "scheduler_config"),
}
