//! What a small model computes, text by text in f64, composed of the kernels' specifications: no packing, no fused
//! products, no tape.

use std::collections::BTreeMap;

use motley_kernels::{attention, dropout, gelu, layer_norm, lora, normalize, pool};
use motley_ops::{LoraConfig, ModelConfig, ModelDropout, Role, TokenizedText, TrainRow, TrainerState};

use super::small::{HIDDEN, SEED, SmallModel};

/// Sites of random draws: sixteen a layer, those of the roles first, then these.
const SITES_A_LAYER: u32 = 16;
const ATTENTION: u32 = 8;
const ATTENTION_OUTPUT: u32 = 9;
const OUTPUT: u32 = 10;
const EMBEDDINGS: u32 = u32::MAX;

pub struct Plain<'a> {
    pub model: &'a SmallModel,
    config: ModelConfig,
    weights: BTreeMap<&'a str, Vec<f64>>,
    pub adapter: Option<PlainAdapter>,
}

/// Factors by `<module path>.lora_A` and `.lora_B_transposed`.
pub struct PlainAdapter {
    pub lora: LoraConfig,
    pub factors: BTreeMap<String, Vec<f64>>,
}

/// Names of the rows of one text, where draws are made.
type Names = Option<Vec<u32>>;

impl PlainAdapter {
    pub fn of(lora: &LoraConfig, state: &TrainerState) -> Self {
        let factors = state.tensors.iter().filter_map(|(name, tensor)| {
            let values = tensor.values.iter().map(|value| f64::from(*value)).collect();
            Some((name.strip_prefix("parameter.")?.to_owned(), values))
        });
        PlainAdapter { lora: lora.clone(), factors: factors.collect() }
    }

    pub fn scale(&self) -> f64 {
        let rank = self.lora.rank as f64;
        f64::from(self.lora.alpha) / if self.lora.rank_stabilized { rank.sqrt() } else { rank }
    }
}

impl<'a> Plain<'a> {
    pub fn new(model: &'a SmallModel) -> Self {
        let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect();
        let weights = model.tensors.iter().map(|(name, (_, values))| (name.as_str(), wide(values)));
        Plain { model, config: model.config(), weights: weights.collect(), adapter: None }
    }

    /// The vectors of texts, without dropout.
    pub fn embed(&self, texts: &[TokenizedText]) -> Vec<f64> {
        texts.iter().flat_map(|text| self.text(text, None)).collect()
    }

    /// The vectors of all texts of rows as the first step of a training draws.
    pub fn embed_rows(&self, rows: &[TrainRow]) -> Vec<f64> {
        let names = |sample: u32, slot: usize, text: &TokenizedText| {
            (0..text.ids.len()).flat_map(|token| [sample, (slot << 24 | token) as u32]).collect()
        };
        let each = |row: &TrainRow| {
            let slots = row.texts.iter().enumerate();
            slots
                .flat_map(|(slot, text)| self.text(text, Some(names(row.sample, slot, text))))
                .collect::<Vec<_>>()
        };
        rows.iter().flat_map(each).collect()
    }

    fn weight(&self, name: &str) -> &[f64] {
        &self.weights[name]
    }

    fn text(&self, text: &TokenizedText, names: Names) -> Vec<f64> {
        let tokens = text.ids.len();
        let mut x = Vec::new();
        for (token, id) in text.ids.iter().enumerate() {
            let row = |table: &str, index: usize| {
                &self.weight(&format!("embeddings.{table}_embeddings.weight"))[index * HIDDEN..][..HIDDEN]
            };
            let word = row("word", *id as usize);
            let position = row("position", token + self.config.position_first);
            let kind = row("token_type", text.type_ids.get(token).map_or(0, |kind| *kind as usize));
            x.extend((0..HIDDEN).map(|i| word[i] + position[i] + kind[i]));
        }
        let mut x = self.base_dropout(self.norm("embeddings", x), &names, EMBEDDINGS);
        for layer in 0..self.config.layers {
            x = self.layer(layer, x, &names);
        }
        let kind = if self.model.pooling == "cls" { pool::Kind::Cls } else { pool::Kind::Mean };
        let pooled = pool::reference::forward(&x, &[0, tokens as u32], HIDDEN, kind);
        if self.model.normalize { normalize::reference::forward(&pooled, HIDDEN).0 } else { pooled }
    }

    fn layer(&self, layer: usize, x: Vec<f64>, names: &Names) -> Vec<f64> {
        let site = layer as u32 * SITES_A_LAYER;
        let path = format!("encoder.layer.{layer}");
        let mixed = self.attention(layer, &x, names);
        let mixed = self.linear(layer, Role::AttentionOutput, &mixed, names);
        let mixed = self.base_dropout(mixed, names, site + ATTENTION_OUTPUT);
        let x = self.norm(&format!("{path}.attention.output"), sum(&mixed, &x));
        let wide = self.linear(layer, Role::Intermediate, &x, names);
        let wide = gelu::reference::forward(&wide, gelu::Kind::Exact);
        let out = self.base_dropout(self.linear(layer, Role::Output, &wide, names), names, site + OUTPUT);
        self.norm(&format!("{path}.output"), sum(&out, &x))
    }

    fn attention(&self, layer: usize, x: &[f64], names: &Names) -> Vec<f64> {
        let parts = [Role::Query, Role::Key, Role::Value].map(|role| self.linear(layer, role, x, names));
        let tokens = x.len() / HIDDEN;
        let qkv: Vec<f64> = (0..tokens)
            .flat_map(|t| parts.iter().flat_map(move |part| &part[t * HIDDEN..(t + 1) * HIDDEN]).copied())
            .collect();
        let heads = self.config.heads as u32;
        let drops = names.is_some() && self.model.dropout == ModelDropout::Config;
        let args = attention::Args {
            tokens: tokens as u32,
            texts: 1,
            longest: tokens as u32,
            heads,
            kv_heads: heads,
            head_dim: HIDDEN as u32 / heads,
            stride: 3 * HIDDEN as u32,
            query: 0,
            key: HIDDEN as u32,
            value: 2 * HIDDEN as u32,
            scale: 1.0 / (HIDDEN as f32 / heads as f32).sqrt(),
            causal: 0,
            dropout: if drops { self.config.attention_dropout } else { 0.0 },
            seed_low: SEED as u32,
            seed_high: (SEED >> 32) as u32,
            step: 0,
            site: layer as u32 * SITES_A_LAYER + ATTENTION,
        };
        let names = names.clone().unwrap_or_default();
        attention::reference::forward(&qkv, &[0, tokens as u32], &names, &args).out
    }

    fn linear(&self, layer: usize, role: Role, x: &[f64], names: &Names) -> Vec<f64> {
        let ([inputs, outputs], path) = (role.widths(&self.config), self.config.module_path(layer, role));
        let (weight, bias) = (self.weight(&format!("{path}.weight")), self.weight(&format!("{path}.bias")));
        let mut y = Vec::new();
        for x in x.chunks(inputs) {
            for output in 0..outputs {
                let products = x.iter().zip(&weight[output * inputs..]).map(|(x, w)| x * w);
                y.push(products.sum::<f64>() + bias[output]);
            }
        }
        let Some(adapter) = &self.adapter else { return y };
        let Some(a) = adapter.factors.get(&format!("{path}.lora_A")) else { return y };
        let b = &adapter.factors[&format!("{path}.lora_B_transposed")];
        let site = layer as u32 * SITES_A_LAYER + role as u32;
        let dropped = drop(x, names, adapter.lora.dropout, (inputs, site));
        let hidden = lora::reference::dot(&dropped, a, (adapter.lora.rank, inputs));
        sum(&y, &lora::reference::expand(&hidden, b, (adapter.lora.rank, outputs), adapter.scale()))
    }

    fn norm(&self, path: &str, x: Vec<f64>) -> Vec<f64> {
        let part = |name: &str| self.weight(&format!("{path}.LayerNorm.{name}"));
        let epsilon = f64::from(self.config.layer_norm_epsilon);
        layer_norm::reference::forward(&x, part("weight"), part("bias"), HIDDEN, epsilon).y
    }

    fn base_dropout(&self, x: Vec<f64>, names: &Names, site: u32) -> Vec<f64> {
        let asked = self.model.dropout == ModelDropout::Config;
        let probability = if asked { self.config.hidden_dropout } else { 0.0 };
        drop(&x, names, probability, (HIDDEN, site))
    }
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn drop(x: &[f64], names: &Names, probability: f32, (features, site): (usize, u32)) -> Vec<f64> {
    let Some(names) = names.as_ref().filter(|_| probability > 0.0) else { return x.to_vec() };
    let args = dropout::Args {
        rows: (x.len() / features) as u32,
        features: features as u32,
        probability,
        seed_low: SEED as u32,
        seed_high: (SEED >> 32) as u32,
        step: 0,
        site,
        stride: features as u32,
        offset: 0,
    };
    dropout::reference::apply(x, names, &args)
}
