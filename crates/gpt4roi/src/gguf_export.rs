//! Writes the pair of GGUF files that [`crate::gguf_pair`] describes and reads.

use std::{fs::File, io::BufWriter, path::Path};

use crate::{
    config::{Activation, Config},
    convert::{ConvertError, ConvertResult},
    ggml_type::GgmlType,
    gguf::{Array, GgufPlan, GgufWriter, Value},
    gguf_names::{is_interleaved, published_row, to_gguf},
    gguf_pair::{
        BOS, BYTE, CONFIG, CONTROL, EOS, NORMAL, PIECE_COUNT, SCORES, SPACE_PREFIX, TOKEN_TYPES, TOKENS, UNKNOWN,
        UNKNOWN_PIECE, UNUSED, VISION_CONFIG,
    },
    quantize::{Quantization, RoundingError},
    sentencepiece::Kind,
    shards::halves,
    staging::file_error,
    stream::StreamedTensor,
    tokenizer::Tokenizer,
    weights::WeightsError,
};

/// Writes the language model: a plain LLaMA as llama.cpp reads it.
///
/// # Errors
/// If a number does not fit, or reading or writing fails.
pub(crate) fn write_language(
    path: &Path,
    tensors: Vec<StreamedTensor>,
    config: &Config,
    tokenizer: &Tokenizer,
    quantization: Quantization,
) -> ConvertResult<Vec<RoundingError>> {
    let head = config.llama.hidden_size / config.llama.num_attention_heads;
    let in_file_order = |tensor: StreamedTensor| {
        if is_interleaved(&tensor.name) { tensor.reordered(move |row| published_row(row, head)) } else { tensor }
    };
    let mut metadata = general("llama", path, quantization);
    metadata.extend(language_metadata(config));
    metadata.extend(tokenizer_metadata(tokenizer, config.llama.vocab_size));
    let layers = config.llama.num_hidden_layers;
    write(path, &metadata, tensors.into_iter().map(in_file_order).collect(), quantization, layers)
}

/// Writes vision tower, projector and region module, with all that it takes to rebuild the configuration.
///
/// # Errors
/// As [`write_language`].
pub(crate) fn write_projector(
    path: &Path,
    tensors: Vec<StreamedTensor>,
    config: &Config,
    tokenizer: &Tokenizer,
    quantization: Quantization,
) -> ConvertResult<Vec<RoundingError>> {
    let mut metadata = general("clip", path, quantization);
    metadata.extend(vision_metadata(config));
    metadata.push((CONFIG, Value::String(config.to_json().to_string())));
    metadata.push((VISION_CONFIG, Value::String(config.tower_to_json().to_string())));
    metadata.push((PIECE_COUNT, Value::U32(tokenizer.sentencepiece().len() as u32)));
    write(path, &metadata, tensors, quantization, 0)
}

fn general(architecture: &str, path: &Path, quantization: Quantization) -> Vec<(&'static str, Value)> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    vec![
        ("general.architecture", architecture.into()),
        ("general.name", (&*name).into()),
        ("general.file_type", Value::U32(quantization.file_type())),
        ("general.quantization_version", Value::U32(2)),
    ]
}

fn language_metadata(config: &Config) -> Vec<(&'static str, Value)> {
    let llama = &config.llama;
    let count = |number: usize| Value::U32(number as u32); // the configuration bounds them all
    vec![
        ("llama.vocab_size", count(llama.vocab_size)),
        ("llama.context_length", count(llama.max_position_embeddings)),
        ("llama.embedding_length", count(llama.hidden_size)),
        ("llama.block_count", count(llama.num_hidden_layers)),
        ("llama.feed_forward_length", count(llama.intermediate_size)),
        ("llama.attention.head_count", count(llama.num_attention_heads)),
        ("llama.attention.head_count_kv", count(llama.num_attention_heads)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(llama.rms_norm_eps as f32)),
        ("llama.rope.dimension_count", count(llama.hidden_size / llama.num_attention_heads)),
        ("llama.rope.freq_base", Value::F32(llama.rope_theta as f32)),
    ]
}

fn tokenizer_metadata(tokenizer: &Tokenizer, rows: usize) -> Vec<(&'static str, Value)> {
    /// What llama.cpp's converter gives tokens that no merge makes.
    const NEVER: f32 = -1000.0;
    let (mut tokens, mut scores, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for piece in tokenizer.sentencepiece().pieces() {
        tokens.push(piece.text.to_string());
        scores.push(piece.score);
        types.push(match piece.kind {
            Kind::Normal => NORMAL,
            Kind::Unknown => UNKNOWN_PIECE,
            Kind::Control => CONTROL,
            Kind::Byte(_) => BYTE,
        });
    }
    let padding = (tokenizer.vocab_size()..rows).map(|row| (format!("[UNUSED{row}]"), UNUSED));
    for (token, kind) in tokenizer.added().iter().map(|token| (token.clone(), CONTROL)).chain(padding) {
        tokens.push(token);
        scores.push(NEVER);
        types.push(kind);
    }
    let special = tokenizer.special();
    vec![
        ("tokenizer.ggml.model", "llama".into()),
        ("tokenizer.ggml.pre", "default".into()),
        (TOKENS, Value::Array(Array::String(tokens))),
        (SCORES, Value::Array(Array::F32(scores))),
        (TOKEN_TYPES, Value::Array(Array::I32(types))),
        (BOS, Value::U32(special.bos)),
        (EOS, Value::U32(special.eos)),
        (UNKNOWN, Value::U32(tokenizer.sentencepiece().unknown())),
        ("tokenizer.ggml.padding_token_id", Value::U32(special.pad)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Value::Bool(false)),
        (SPACE_PREFIX, Value::Bool(tokenizer.sentencepiece().has_dummy_prefix())),
    ]
}

fn vision_metadata(config: &Config) -> Vec<(&'static str, Value)> {
    let vision = &config.vision;
    let count = |number: usize| Value::U32(number as u32);
    // llama.cpp takes the tower's last state, so its layers end where the projector reads.
    let layers = config.level_states().ok().and_then(|states| states.last().copied()).unwrap_or(0);
    vec![
        ("clip.has_vision_encoder", Value::Bool(true)),
        ("clip.projector_type", "mlp".into()),
        ("clip.use_gelu", Value::Bool(vision.hidden_act == Activation::Gelu)),
        ("clip.vision.image_size", count(vision.image_size)),
        ("clip.vision.patch_size", count(vision.patch_size)),
        ("clip.vision.embedding_length", count(vision.hidden_size)),
        ("clip.vision.feed_forward_length", count(vision.intermediate_size)),
        ("clip.vision.block_count", count(layers)),
        ("clip.vision.attention.head_count", count(vision.num_attention_heads)),
        ("clip.vision.attention.layer_norm_epsilon", Value::F32(vision.layer_norm_eps as f32)),
        ("clip.vision.projection_dim", count(config.llama.hidden_size)),
        ("clip.vision.image_mean", Value::Array(Array::F32(vision.image_mean.to_vec()))),
        ("clip.vision.image_std", Value::Array(Array::F32(vision.image_std.to_vec()))),
    ]
}

/// Writes tensors under their names in GGUF, each as the recipe says, a piece at a time.
fn write(
    path: &Path,
    metadata: &[(&str, Value)],
    tensors: Vec<StreamedTensor>,
    quantization: Quantization,
    layers: usize,
) -> ConvertResult<Vec<RoundingError>> {
    let plan = |tensor: &StreamedTensor| {
        let unknown = || ConvertError::NoCounterpart { name: tensor.name.clone(), owner: "model", other: "GGUF file" };
        let name = to_gguf(&tensor.name).ok_or_else(unknown)?;
        let kind = quantization.kind(&name, &tensor.shape, layers);
        Ok(GgufPlan { name, kind, shape: tensor.shape.clone() })
    };
    let plans = tensors.iter().map(plan).collect::<ConvertResult<Vec<_>>>()?;
    let failed = file_error(path);
    let out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(&failed)?);
    let mut writer = GgufWriter::new(out, metadata, &plans).map_err(&failed)?;
    let mut errors = Vec::with_capacity(tensors.len());
    for (tensor, GgufPlan { name, kind, .. }) in tensors.iter().zip(&plans) {
        writer.begin(name).map_err(&failed)?;
        let (mut lost, mut all) = (0.0, 0.0);
        for piece in tensor.pieces() {
            let values = piece?;
            let bytes = rounded(&tensor.name, &values, *kind)?;
            let back = kind.dequantize(&bytes).map_err(|source| engine_error(&tensor.name, source))?;
            for (value, back) in values.iter().zip(back) {
                lost += f64::from(value - back).powi(2);
                all += f64::from(*value).powi(2);
            }
            writer.write(&bytes).map_err(&failed)?;
        }
        let relative_rms = if all == 0.0 { 0.0 } else { (lost / all).sqrt() };
        let (name, numbers) = (tensor.name.clone(), tensor.count());
        errors.push(RoundingError { name, kind: kind.name(), numbers, relative_rms });
    }
    writer.finish().map_err(&failed)?;
    Ok(errors)
}

/// Numbers as a type's blocks. What is no number, or too large, has no place in them.
fn rounded(name: &str, values: &[f32], kind: GgmlType) -> ConvertResult<Vec<u8>> {
    if kind == GgmlType::F16 {
        return halves(name, values);
    }
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(ConvertError::NotFinite { name: name.to_owned(), value: *value, kind: kind.name() });
    }
    kind.quantize(values).map_err(|source| engine_error(name, source))
}

fn engine_error(name: &str, source: candle_core::Error) -> ConvertError {
    WeightsError::Tensor { name: name.to_owned(), source }.into()
}
