//! A small decoder, and what it computes: plain loops in f64 over one text, which share nothing with the kernels.

use std::collections::BTreeMap;

use motley_kernels::nf4;
use motley_ops::{ModelConfig, ModelDropout, Role, TokenizedText};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::plain::PlainAdapter;
use super::small::{HIDDEN, Seeded, SmallModel};

pub const HEADS: usize = 6;
const VOCABULARY: usize = 50;

/// Heads, halves of heads and widths are no multiples of registers, and query heads are wider than the model.
pub fn small_decoder(model_type: &str, more: Value, dtype: Dtype) -> SmallModel {
    let mut config = json!({
        "model_type": model_type, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": HEADS,
        "num_key_value_heads": 2, "head_dim": 10, "intermediate_size": 44, "vocab_size": VOCABULARY,
        "max_position_embeddings": 24, "rms_norm_eps": 1e-5, "rope_theta": 100.0, "hidden_act": "silu",
        "attention_dropout": 0.2,
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    let tensors = tensors(&ModelConfig::parse(&config.to_string()).unwrap());
    SmallModel { config, pooling: "lasttoken", normalize: false, dropout: ModelDropout::Off, tensors, dtype }
}

fn tensors(config: &ModelConfig) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let decoder = config.decoder.as_ref().unwrap();
    let mut seeded = Seeded::new(2);
    let mut tensors = BTreeMap::new();
    let mut put = |name: String, shape: Vec<usize>, unit: f32, centre: f32| {
        let values = seeded.values(shape.iter().product(), unit);
        tensors.insert(name, (shape, values.iter().map(|value| value + centre).collect()));
    };
    put("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN], 1.0 / 64.0, 0.0);
    put("model.norm.weight".to_owned(), vec![HIDDEN], 1.0 / 128.0, 1.0);
    for layer in 0..config.layers {
        let path = format!("model.layers.{layer}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            put(format!("{path}.{norm}.weight"), vec![HIDDEN], 1.0 / 128.0, 1.0);
        }
        if decoder.head_norms {
            for norm in ["q_norm", "k_norm"] {
                put(format!("{path}.self_attn.{norm}.weight"), vec![config.head_dim], 1.0 / 128.0, 1.0);
            }
        }
        for role in config.roles() {
            let ([inputs, outputs], module) = (role.widths(config), config.module_path(layer, *role));
            put(format!("model.{module}.weight"), vec![outputs, inputs], 1.0 / 256.0, 0.0);
            let biased = match role {
                Role::Query | Role::Key | Role::Value => decoder.query_bias,
                Role::AttentionOutput => decoder.attention_output_bias,
                _ => false,
            };
            if biased {
                put(format!("model.{module}.bias"), vec![outputs], 1.0 / 256.0, 0.0);
            }
        }
    }
    tensors
}

pub struct PlainDecoder<'a> {
    model: &'a SmallModel,
    config: ModelConfig,
    weights: BTreeMap<&'a str, Vec<f64>>,
    pub adapter: Option<PlainAdapter>,
}

type Rows = Vec<Vec<f64>>;

impl<'a> PlainDecoder<'a> {
    pub fn new(model: &'a SmallModel) -> Self {
        let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect();
        let weights = model
            .tensors
            .iter()
            .map(|(name, (_, values))| (name.strip_prefix("model.").unwrap(), wide(values)));
        PlainDecoder { model, config: model.config(), weights: weights.collect(), adapter: None }
    }

    /// Its linear layers as NF4 keeps them.
    pub fn quantized(mut self) -> Self {
        for (name, values) in &mut self.weights {
            if name.contains("_proj.weight") {
                let narrow: Vec<f32> = values.iter().map(|value| *value as f32).collect();
                let (codes, absmax) = nf4::quantize(&narrow);
                let absmax = nf4::DoubleQuantized::new(&absmax).absmax();
                let kept = nf4::dequantize(&codes, &absmax, narrow.len());
                *values = kept.iter().map(|value| f64::from(*value)).collect();
            }
        }
        self
    }

    pub fn embed(&self, texts: &[TokenizedText]) -> Vec<f64> {
        texts.iter().flat_map(|text| self.text(text)).collect()
    }

    fn text(&self, text: &TokenizedText) -> Vec<f64> {
        let words = &self.weights["embed_tokens.weight"];
        let mut x: Rows =
            text.ids.iter().map(|id| words[*id as usize * HIDDEN..][..HIDDEN].to_vec()).collect();
        for layer in 0..self.config.layers {
            let normed = self.norm(&format!("layers.{layer}.input_layernorm"), &x);
            add(&mut x, &self.attention(layer, &normed));
            let normed = self.norm(&format!("layers.{layer}.post_attention_layernorm"), &x);
            add(&mut x, &self.feed_forward(layer, &normed));
        }
        let x = self.norm("norm", &x);
        let mut pooled = match self.model.pooling {
            "lasttoken" => x[x.len() - 1].clone(),
            _ => (0..HIDDEN).map(|i| x.iter().map(|row| row[i]).sum::<f64>() / x.len() as f64).collect(),
        };
        if self.model.normalize {
            let length = pooled.iter().map(|value| value * value).sum::<f64>().sqrt();
            pooled.iter_mut().for_each(|value| *value /= length);
        }
        pooled
    }

    fn norm(&self, path: &str, x: &Rows) -> Rows {
        let factors = &self.weights[format!("{path}.weight").as_str()];
        x.iter().map(|row| self.root_norm(row, factors)).collect()
    }

    fn root_norm(&self, x: &[f64], factors: &[f64]) -> Vec<f64> {
        let square = x.iter().map(|value| value * value).sum::<f64>() / x.len() as f64;
        let root = (square + f64::from(self.config.layer_norm_epsilon)).sqrt();
        x.iter().zip(factors).map(|(value, factor)| value / root * factor).collect()
    }

    fn attention(&self, layer: usize, x: &Rows) -> Rows {
        let (dim, heads, group) = (self.config.head_dim, HEADS, HEADS / self.config.kv_heads);
        let query = self.heads(layer, Role::Query, x, "q_norm");
        let key = self.heads(layer, Role::Key, x, "k_norm");
        let value = self.linear(layer, Role::Value, x);
        let causal = self.config.decoder.as_ref().unwrap().is_causal;
        let mut mixed = vec![vec![0.0; heads * dim]; x.len()];
        for (t, mixed) in mixed.iter_mut().enumerate() {
            for head in 0..heads {
                let shared = head / group * dim;
                let seen = if causal { t + 1 } else { x.len() };
                let score = |s: usize| {
                    let products = (0..dim).map(|i| query[t][head * dim + i] * key[s][shared + i]);
                    products.sum::<f64>() / (dim as f64).sqrt()
                };
                let scores: Vec<f64> = (0..seen).map(score).collect();
                let total: f64 = scores.iter().map(|score| score.exp()).sum();
                for (s, score) in scores.iter().enumerate() {
                    for i in 0..dim {
                        mixed[head * dim + i] += score.exp() / total * value[s][shared + i];
                    }
                }
            }
        }
        self.linear(layer, Role::AttentionOutput, &mixed)
    }

    /// Heads of queries or keys: projected, perhaps normalised, rotated.
    fn heads(&self, layer: usize, role: Role, x: &Rows, norm: &str) -> Rows {
        let (dim, decoder) = (self.config.head_dim, self.config.decoder.as_ref().unwrap());
        let mut all = self.linear(layer, role, x);
        for (position, row) in all.iter_mut().enumerate() {
            for head in row.chunks_mut(dim) {
                if decoder.head_norms {
                    let factors = &self.weights[format!("layers.{layer}.self_attn.{norm}.weight").as_str()];
                    let normed = self.root_norm(head, factors);
                    head.copy_from_slice(&normed);
                }
                for i in 0..dim / 2 {
                    let angle = position as f64 / decoder.rotation_base.powf(2.0 * i as f64 / dim as f64);
                    let (a, b) = (head[i], head[i + dim / 2]);
                    head[i] = a * angle.cos() - b * angle.sin();
                    head[i + dim / 2] = a * angle.sin() + b * angle.cos();
                }
            }
        }
        all
    }

    fn feed_forward(&self, layer: usize, x: &Rows) -> Rows {
        let (gate, up) = (self.linear(layer, Role::Gate, x), self.linear(layer, Role::Intermediate, x));
        let gated = |(gate, up): (&Vec<f64>, &Vec<f64>)| {
            gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
        };
        let gated: Rows = gate.iter().zip(&up).map(gated).collect();
        self.linear(layer, Role::Output, &gated)
    }

    fn linear(&self, layer: usize, role: Role, x: &Rows) -> Rows {
        let ([inputs, outputs], path) = (role.widths(&self.config), self.config.module_path(layer, role));
        let weight = &self.weights[format!("{path}.weight").as_str()];
        let bias = self.weights.get(format!("{path}.bias").as_str());
        let product = |x: &Vec<f64>, row: &[f64]| x.iter().zip(row).map(|(x, w)| x * w).sum::<f64>();
        let mut y: Rows = x
            .iter()
            .map(|x| {
                let output =
                    |o: usize| product(x, &weight[o * inputs..][..inputs]) + bias.map_or(0.0, |bias| bias[o]);
                (0..outputs).map(output).collect()
            })
            .collect();
        let Some(adapter) = &self.adapter else { return y };
        let Some(a) = adapter.factors.get(&format!("{path}.lora_A")) else { return y };
        let b = &adapter.factors[&format!("{path}.lora_B_transposed")];
        for (x, y) in x.iter().zip(&mut y) {
            for r in 0..adapter.lora.rank {
                let hidden = adapter.scale() * product(x, &a[r * inputs..][..inputs]);
                for (y, b) in y.iter_mut().zip(&b[r * outputs..]) {
                    *y += hidden * b;
                }
            }
        }
        y
    }
}

fn add(x: &mut Rows, block: &Rows) {
    for (x, block) in x.iter_mut().zip(block) {
        x.iter_mut().zip(block).for_each(|(x, block)| *x += block);
    }
}
