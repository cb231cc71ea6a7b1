//! A model for tests: a tiny random BERT made here.
//!
//! It has everything a sentence-transformers folder has (config, tokenizer, pooling, weights), random
//! weights from a fixed seed, and no meaning: good for faults, not for figures.

use std::path::Path;

use serde_json::{Value, json};

const HIDDEN: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const INTERMEDIATE: usize = 64;
const POSITIONS: usize = 64;

/// Words of the tiny tokenizer, behind its special tokens.
pub const WORDS: [&str; 40] = [
    "rate", "cut", "bank", "bond", "stock", "yield", "price", "market", "fund", "loan", "credit", "risk",
    "swap", "option", "future", "index", "cash", "debt", "equity", "margin", "the", "a", "of", "in", "on",
    "rises", "falls", "holds", "sells", "buys", "central", "reserve", "policy", "interest", "long", "short",
    "high", "low", "new", "old",
];
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Writes the tiny model into `folder`.
pub fn write_tiny(folder: &Path) {
    std::fs::create_dir_all(folder.join("1_Pooling")).expect("a test folder can be made");
    let write = |name: &str, value: &Value| {
        let text = serde_json::to_string_pretty(value).expect("JSON values print");
        std::fs::write(folder.join(name), text).expect("a test file can be written");
    };
    write("config.json", &config());
    write("tokenizer.json", &tokenizer());
    write(
        "tokenizer_config.json",
        &json!({ "tokenizer_class": "BertTokenizer", "do_lower_case": true, "model_max_length": POSITIONS }),
    );
    write("sentence_bert_config.json", &json!({ "max_seq_length": POSITIONS, "do_lower_case": false }));
    write(
        "1_Pooling/config.json",
        &json!({
            "word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false,
            "pooling_mode_mean_sqrt_len_tokens": false,
        }),
    );
    let module = |index: usize, path: &str, kind: &str| {
        json!({ "idx": index, "name": index.to_string(), "path": path,
                "type": format!("sentence_transformers.models.{kind}") })
    };
    let modules = [
        module(0, "", "Transformer"),
        module(1, "1_Pooling", "Pooling"),
        module(2, "2_Normalize", "Normalize"),
    ];
    write("modules.json", &json!(modules));
    write(
        "config_sentence_transformers.json",
        &json!({ "__version__": { "sentence_transformers": "2.0.0" } }),
    );
    std::fs::write(folder.join("model.safetensors"), weights()).expect("a test file can be written");
}

fn config() -> Value {
    json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "vocab_size": vocabulary(),
        "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02, "pad_token_id": 0, "position_embedding_type": "absolute",
    })
}

/// A multiple of 8 with room for every token.
fn vocabulary() -> usize {
    (SPECIAL.len() + WORDS.len()).next_multiple_of(8)
}

fn tokenizer() -> Value {
    let tokens = SPECIAL.iter().chain(&WORDS);
    let vocabulary: serde_json::Map<String, Value> =
        tokens.enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true })
        })
        .collect();
    let special = |name: &str, id: usize| json!({ "id": name, "ids": [id], "tokens": [name] });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                        "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "[CLS]", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                       { "SpecialToken": { "id": "[SEP]", "type_id": 0 } }],
            "pair": [{ "SpecialToken": { "id": "[CLS]", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                     { "SpecialToken": { "id": "[SEP]", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } },
                     { "SpecialToken": { "id": "[SEP]", "type_id": 1 } }],
            "special_tokens": { "[CLS]": special("[CLS]", 2), "[SEP]": special("[SEP]", 3) },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": vocabulary },
    })
}

/// Names and shapes as sentence-transformers writes them for BERT.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut list = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![vocabulary(), HIDDEN]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![POSITIONS, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, HIDDEN]),
        ("embeddings.LayerNorm.weight".to_owned(), vec![HIDDEN]),
        ("embeddings.LayerNorm.bias".to_owned(), vec![HIDDEN]),
        ("pooler.dense.weight".to_owned(), vec![HIDDEN, HIDDEN]),
        ("pooler.dense.bias".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let mut linear = |name: &str, output: usize, input: usize| {
            list.push((format!("encoder.layer.{layer}.{name}.weight"), vec![output, input]));
            list.push((format!("encoder.layer.{layer}.{name}.bias"), vec![output]));
        };
        for name in ["attention.self.query", "attention.self.key", "attention.self.value"] {
            linear(name, HIDDEN, HIDDEN);
        }
        linear("attention.output.dense", HIDDEN, HIDDEN);
        linear("intermediate.dense", INTERMEDIATE, HIDDEN);
        linear("output.dense", HIDDEN, INTERMEDIATE);
        for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
            list.push((format!("encoder.layer.{layer}.{name}.weight"), vec![HIDDEN]));
            list.push((format!("encoder.layer.{layer}.{name}.bias"), vec![HIDDEN]));
        }
    }
    list
}

/// A safetensors file: header length, header, values.
fn weights() -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut values: Vec<u8> = Vec::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (name, shape) in tensors() {
        let begin = values.len();
        let count: usize = shape.iter().product();
        for _ in 0..count {
            let value = match (name.contains("LayerNorm"), name.ends_with("weight")) {
                (true, true) => 1.0,
                (_, false) => 0.0,
                // Wide enough that the attention is not flat.
                (false, true) => 0.2 * uniform(&mut state),
            };
            values.extend(value.to_le_bytes());
        }
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, values.len()] }));
    }
    let mut header = serde_json::to_vec(&header).expect("JSON values print");
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &values].concat()
}

/// xorshift64*, from -1 to 1.
pub(crate) fn uniform(state: &mut u64) -> f32 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
    bits as f32 / (1_u64 << 23) as f32 - 1.0
}
