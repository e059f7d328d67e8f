"""An adapter that PEFT writes, and what transformers and PEFT compute with it, for `crates/gpt4roi/tests/adapter.rs`.

    pip install peft==0.18.0 transformers torch safetensors
    python reference/make_adapter_golden.py crates/gpt4roi/tests/golden/clip crates/gpt4roi/tests/golden/adapter

The language model is that of the first folder. Its seven linear layers get changes of rank 3, and its output layer is
replaced. Written are the adapter, as `save_pretrained` leaves it, and `expected.safetensors`: ids, the logits behind
them, and the gradient of the mean cross-entropy of each next id, by the names of the adapter's tensors.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH = 17


def language_model(folder):
    fields = json.loads((folder / "config.json").read_text())
    names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    names += ["rms_norm_eps", "max_position_embeddings"]
    model = LlamaForCausalLM(LlamaConfig(**{name: fields[name] for name in names}, attn_implementation="eager"))
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    own = {name: tensors[name] for name in model.state_dict()}
    model.load_state_dict(own)
    return model.float()


def main():
    model_folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.manual_seed(5)
    model = language_model(model_folder)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = LoraConfig(r=3, lora_alpha=4.5, target_modules=layers, modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(model, settings)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():  # as if something had been learned
            parameter.add_(0.2 * torch.randn_like(parameter))
    ids = torch.randint(0, 800, (1, LENGTH))
    logits = model(ids).logits[0]
    torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]).backward()
    expected = {"ids": ids[0].to(torch.uint32), "logits": logits.detach().contiguous()}
    for name, parameter in trained.items():
        expected[f"gradient.{name.replace('.default', '').replace('.modules_to_save', '')}"] = parameter.grad.contiguous()
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    config = json.loads((out / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../clip"
    config["target_modules"] = sorted(config["target_modules"])  # a set, in another order every time
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(expected, out / "expected.safetensors")


if __name__ == "__main__":
    main()
