"""The `genai_config.json` with which onnxruntime-genai runs a decoder that `decoder_graph` wrote."""

import json
from pathlib import Path
from typing import Any

from benchmarks.networks.decoder_shape import DecoderShape


def config(shape: DecoderShape, end_of_text: int, filename: str = "model.onnx") -> dict[str, Any]:
    """What the builder of onnxruntime-genai would say of such a decoder."""
    return {
        "model": {
            "type": "llama",
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
            "pad_token_id": end_of_text,
            "vocab_size": shape.vocabulary,
            "context_length": shape.context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": filename,
                "head_size": shape.head_size,
                "hidden_size": shape.width,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": shape.heads,
                "num_hidden_layers": shape.layers,
                "num_key_value_heads": shape.kv_heads,
            },
        },
        "search": {
            "do_sample": False,
            "early_stopping": True,
            "max_length": shape.context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


def write(shape: DecoderShape, end_of_text: int, folder: Path) -> None:
    """Write `genai_config.json` beside the network and the tokenizer."""
    (folder / "genai_config.json").write_text(json.dumps(config(shape, end_of_text), indent=2) + "\n")
