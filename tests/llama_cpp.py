"A model of the Llama family as a GGUF file with float32 weights, and our log-probabilities of the next token."

import json

import numpy as np
import torch

from personal_llm.base.replies import pair_neighbours


def add_sizes(writer, config) -> None:
    "The numbers of a network that every family has."
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def finish(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_base(model, file) -> None:
    "What llama.cpp's own converter writes for a Llama with tied or own output weights."
    import gguf

    config, writer = model.model.config, gguf.GGUFWriter(str(file), "llama")
    vocabulary = json.loads(model.tokenizer.backend_tokenizer.to_str())["model"]
    tokens = model.tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    special = {*model.tokenizer.all_special_ids}
    add_sizes(writer, config)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token or f"[{i}]" for i, token in enumerate(tokens)])
    writer.add_token_types([3 if i in special else 1 for i in range(config.vocab_size)])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in vocabulary["merges"]])
    writer.add_bos_token_id(model.tokenizer.bos_token_id)
    writer.add_eos_token_id(model.tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, x in model.model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        x = x.float()
        part = name.split(".")[-2]
        x = pair_neighbours(x, heads[part]) if part in heads else x
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), x.contiguous().numpy())
    finish(writer)


def our_log_probabilities(model, ids: list) -> np.ndarray:  # (vocabulary,)
    with torch.inference_mode():
        return model.model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1).numpy()
