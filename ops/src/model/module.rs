//! The linear layers of a model's layers: what they are for, what files call them, how wide they are.

use super::ModelConfig;

/// What a linear layer of a layer is for. Its number is part of the names of random draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Query,
    Key,
    Value,
    AttentionOutput,
    /// Into the wide half of the feed-forward block; in decoders what the gate lets through.
    Intermediate,
    /// Out of it.
    Output,
    /// The gate of the feed-forward block, in decoders alone.
    Gate,
}

const BERT: [Role; 6] =
    [Role::Query, Role::Key, Role::Value, Role::AttentionOutput, Role::Intermediate, Role::Output];
const DECODER: [Role; 7] = [
    Role::Query,
    Role::Key,
    Role::Value,
    Role::AttentionOutput,
    Role::Gate,
    Role::Intermediate,
    Role::Output,
];

impl Role {
    /// Roles of all families.
    pub(crate) const COUNT: usize = DECODER.len();

    /// `[in, out]`
    pub fn widths(self, config: &ModelConfig) -> [usize; 2] {
        let query = config.heads * config.head_dim;
        match self {
            Role::Query => [config.hidden, query],
            Role::Key | Role::Value => [config.hidden, config.kv_heads * config.head_dim],
            Role::AttentionOutput => [query, config.hidden],
            Role::Intermediate | Role::Gate => [config.hidden, config.intermediate],
            Role::Output => [config.intermediate, config.hidden],
        }
    }
}

impl ModelConfig {
    /// The linear layers of each layer, in the order of adapters.
    pub fn roles(&self) -> &'static [Role] {
        if self.decoder.is_some() { &DECODER } else { &BERT }
    }

    /// Path of a linear layer within its layer.
    pub fn role_path(&self, role: Role) -> &'static str {
        let [bert, decoder] = match role {
            Role::Query => ["attention.self.query", "self_attn.q_proj"],
            Role::Key => ["attention.self.key", "self_attn.k_proj"],
            Role::Value => ["attention.self.value", "self_attn.v_proj"],
            Role::AttentionOutput => ["attention.output.dense", "self_attn.o_proj"],
            Role::Intermediate => ["intermediate.dense", "mlp.up_proj"],
            Role::Output => ["output.dense", "mlp.down_proj"],
            Role::Gate => ["", "mlp.gate_proj"],
        };
        if self.decoder.is_some() { decoder } else { bert }
    }

    /// Path of a linear layer, as PEFT and the weight file name it.
    pub fn module_path(&self, layer: usize, role: Role) -> String {
        let layers = if self.decoder.is_some() { "layers" } else { "encoder.layer" };
        format!("{layers}.{layer}.{}", self.role_path(role))
    }

    /// Whether a linear layer adds a bias.
    pub(crate) fn has_bias(&self, role: Role) -> bool {
        let Some(decoder) = &self.decoder else { return true };
        match role {
            Role::Query | Role::Key | Role::Value => decoder.query_bias,
            Role::AttentionOutput => decoder.attention_output_bias,
            Role::Intermediate | Role::Gate | Role::Output => false,
        }
    }
}
