//! Names of tensors in GGUF files: llama.cpp's for the language model, the tower and the projector,
//! `region.` before the published names of the region module.
//!
//! Source: `gguf-py/gguf/tensor_mapping.py` and `tools/mtmd/clip-impl.h` of llama.cpp.

/// Published name and name in GGUF; `{}` stands for a layer's number, `*` for the rest of the name.
const NAMES: [(&str, &str); 25] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
    ("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    ("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
    ("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
    ("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
    ("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
    ("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
    ("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
    ("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    ("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
    ("vision_model.embeddings.class_embedding", "v.class_embd"),
    ("vision_model.embeddings.patch_embedding.weight", "v.patch_embd.weight"),
    ("vision_model.embeddings.position_embedding.weight", "v.position_embd.weight"),
    ("vision_model.pre_layrnorm.*", "v.pre_ln.*"),
    ("vision_model.encoder.layers.{}.layer_norm1.*", "v.blk.{}.ln1.*"),
    ("vision_model.encoder.layers.{}.layer_norm2.*", "v.blk.{}.ln2.*"),
    ("vision_model.encoder.layers.{}.self_attn.q_proj.*", "v.blk.{}.attn_q.*"),
    ("vision_model.encoder.layers.{}.self_attn.k_proj.*", "v.blk.{}.attn_k.*"),
    ("vision_model.encoder.layers.{}.self_attn.v_proj.*", "v.blk.{}.attn_v.*"),
    ("vision_model.encoder.layers.{}.self_attn.out_proj.*", "v.blk.{}.attn_out.*"),
    ("vision_model.encoder.layers.{}.mlp.fc1.*", "v.blk.{}.ffn_up.*"),
    ("vision_model.encoder.layers.{}.mlp.fc2.*", "v.blk.{}.ffn_down.*"),
    ("model.mm_projector.*", "mm.0.*"),
];

const REGION: (&str, &str) = ("model.spi_module.*", "region.*");

/// The name in GGUF of a published tensor.
pub(crate) fn to_gguf(published: &str) -> Option<String> {
    NAMES.iter().chain([&REGION]).find_map(|(from, to)| translate(published, from, to))
}

/// The published name of a tensor in GGUF.
pub(crate) fn to_published(gguf: &str) -> Option<String> {
    NAMES.iter().chain([&REGION]).find_map(|(to, from)| translate(gguf, from, to))
}

/// Which layer of the language model a tensor in GGUF belongs to.
pub(crate) fn layer(gguf: &str) -> Option<usize> {
    gguf.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Whether the rows of a published tensor stand in another order in GGUF: those of queries and keys,
/// whose two halves of each head llama.cpp interleaves.
pub(crate) fn is_interleaved(published: &str) -> bool {
    published.starts_with("model.layers.")
        && (published.ends_with(".q_proj.weight") || published.ends_with(".k_proj.weight"))
}

/// Which published row stands in row `row` of GGUF.
///
/// Source: `LlamaModel.permute` of llama.cpp's `convert_hf_to_gguf.py`.
pub(crate) fn published_row(row: usize, head: usize) -> usize {
    let (first, within) = (row - row % head, row % head);
    first + within % 2 * (head / 2) + within / 2
}

/// Where llama.cpp's order of rows puts the published row `row` of queries or keys, whose heads have
/// `head` rows.
pub fn stored_row(row: usize, head: usize) -> usize {
    let (first, within) = (row - row % head, row % head);
    first + within % (head / 2) * 2 + within / (head / 2)
}

fn translate(name: &str, from: &str, to: &str) -> Option<String> {
    let (from, rest) = match from.strip_suffix('*') {
        None => (from, None),
        Some(from) => (from, Some(to.strip_suffix('*')?)),
    };
    let Some((before, behind)) = from.split_once("{}") else {
        return match rest {
            None => (name == from).then(|| to.to_owned()),
            Some(to) => name.strip_prefix(from).map(|rest| format!("{to}{rest}")),
        };
    };
    let name = name.strip_prefix(before)?;
    let digits = name.find(|character: char| !character.is_ascii_digit()).filter(|digits| *digits > 0)?;
    let (layer, name) = name.split_at(digits);
    match rest {
        None => (name == behind).then(|| to.replace("{}", layer)),
        Some(to) => name.strip_prefix(behind).map(|rest| format!("{}{rest}", to.replace("{}", layer))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (published, gguf) in [
            ("lm_head.weight", "output.weight"),
            ("model.layers.31.self_attn.o_proj.weight", "blk.31.attn_output.weight"),
            ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
            ("vision_model.encoder.layers.7.mlp.fc1.bias", "v.blk.7.ffn_up.bias"),
            ("vision_model.pre_layrnorm.weight", "v.pre_ln.weight"),
            ("model.mm_projector.bias", "mm.0.bias"),
            ("model.spi_module.mlvl_fuse.fuse_convs.4.gn.weight", "region.mlvl_fuse.fuse_convs.4.gn.weight"),
        ] {
            assert_eq!(to_gguf(published).as_deref(), Some(gguf));
            assert_eq!(to_published(gguf).as_deref(), Some(published));
        }
        for unknown in ["model.layers..mlp.up_proj.weight", "model.layers.x.mlp.up_proj.weight", "blk.1", "model.norm"]
        {
            assert_eq!(to_gguf(unknown), None, "{unknown}");
        }
        assert_eq!(
            (layer("blk.12.attn_v.weight"), layer("v.blk.3.ln1.bias"), layer("output.weight")),
            (Some(12), None, None)
        );
    }

    /// Heads of six rows: the published halves are 0 1 2 and 3 4 5, llama.cpp's pairs (0 3) (1 4) (2 5).
    #[test]
    fn halves_are_interleaved_and_separated_again() {
        let rows: Vec<usize> = (0..12).map(|row| published_row(row, 6)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert!((0..12).all(|row| stored_row(published_row(row, 6), 6) == row));
    }
}
