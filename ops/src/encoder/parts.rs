//! A model's parts on a device, and where each is found. Both families have the same layers but for their norms;
//! what stands around the layers is each family's own.

use motley_backends::{Buffer, Weight};
use motley_kernels::embed;

use super::{Encoder, ModelDropout};
use crate::Role;
use crate::adapter::Module;
use crate::tape::{LinearAt, NormAt};

/// Rows of the table of words that a device binds at once.
pub(super) struct WordPiece {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) table: Buffer,
}

impl WordPiece {
    /// Of a launch that writes the `tokens` tokens whose words are here.
    pub(super) fn args(&self, tokens: usize, hidden: usize) -> embed::Args {
        embed::Args {
            tokens: tokens as u32,
            hidden: hidden as u32,
            first_word: self.first as u32,
            words: self.rows as u32,
        }
    }
}

/// What stands around the layers.
pub(super) enum Frame {
    /// Tables [rows, hidden] of positions and types, which are added to the words, and the norm behind the sum.
    Bert { position: Buffer, token_type: Buffer, norm: Norm },
    /// Cosines and sines of every position (`rope`), and the norm behind the last layer.
    Decoder { angles: Buffer, norm: Norm },
}

/// f32 [hidden] each.
pub(super) struct Norm {
    pub(super) gamma: Buffer,
    /// Absent in norms by the root mean square.
    pub(super) beta: Option<Buffer>,
}

/// Norms stand behind their block and the residual in BERT, before their block in decoders.
pub(super) struct Layer {
    pub(super) qkv: Weight,
    /// Factors [head_dim] of query and key heads, in models that normalise them.
    pub(super) head_norms: Option<[Buffer; 2]>,
    pub(super) attention_output: Weight,
    pub(super) attention_norm: Norm,
    /// In decoders gate and up.
    pub(super) intermediate: Weight,
    pub(super) output: Weight,
    pub(super) output_norm: Norm,
}

/// Modules stacked in the linear layers of all layers.
pub(super) fn stacked(at: LinearAt, is_decoder: bool) -> &'static [Role] {
    match at {
        LinearAt::Qkv(_) => &[Role::Query, Role::Key, Role::Value],
        LinearAt::AttentionOutput(_) => &[Role::AttentionOutput],
        LinearAt::Intermediate(_) if is_decoder => &[Role::Gate, Role::Intermediate],
        LinearAt::Intermediate(_) => &[Role::Intermediate],
        LinearAt::Output(_) => &[Role::Output],
    }
}

impl Encoder {
    /// A linear layer and the modules stacked in its output.
    pub(super) fn linear(&self, at: LinearAt) -> (&Weight, &'static [Role]) {
        let weight = match at {
            LinearAt::Qkv(layer) => &self.layers[layer].qkv,
            LinearAt::AttentionOutput(layer) => &self.layers[layer].attention_output,
            LinearAt::Intermediate(layer) => &self.layers[layer].intermediate,
            LinearAt::Output(layer) => &self.layers[layer].output,
        };
        (weight, stacked(at, self.config.decoder.is_some()))
    }

    /// The linear layer that holds a module, and the module's first row in it.
    pub(super) fn place(&self, layer: usize, role: Role) -> (LinearAt, usize) {
        let at = match role {
            Role::Query | Role::Key | Role::Value => LinearAt::Qkv(layer),
            Role::AttentionOutput => LinearAt::AttentionOutput(layer),
            Role::Intermediate | Role::Gate => LinearAt::Intermediate(layer),
            Role::Output => LinearAt::Output(layer),
        };
        let before = self.linear(at).1.iter().take_while(|other| **other != role);
        (at, before.map(|other| other.widths(&self.config)[1]).sum())
    }

    pub(super) fn norm(&self, at: NormAt) -> &Norm {
        match (at, &self.frame) {
            (NormAt::Frame, Frame::Bert { norm, .. } | Frame::Decoder { norm, .. }) => norm,
            (NormAt::Attention(layer), _) => &self.layers[layer].attention_norm,
            (NormAt::Output(layer), _) => &self.layers[layer].output_norm,
        }
    }

    /// Adapted modules of a linear layer, each with its first column of the output.
    pub(super) fn adapted(&self, at: LinearAt) -> Vec<(Module, usize)> {
        let Some(adapter) = &self.adapter else { return Vec::new() };
        let (LinearAt::Qkv(layer)
        | LinearAt::AttentionOutput(layer)
        | LinearAt::Intermediate(layer)
        | LinearAt::Output(layer)) = at;
        let roles = self.linear(at).1.iter();
        let modules = roles.filter_map(|role| adapter.module(layer, *role));
        modules.map(|module| (*module, self.place(layer, module.role).1)).collect()
    }

    pub(super) fn layer_is_adapted(&self, layer: usize) -> bool {
        self.adapter
            .as_ref()
            .is_some_and(|adapter| adapter.modules.iter().any(|module| module.layer == layer))
    }

    pub(super) fn hidden_dropout(&self) -> f32 {
        if self.dropout == ModelDropout::Config { self.config.hidden_dropout } else { 0.0 }
    }

    pub(super) fn attention_dropout(&self) -> f32 {
        if self.dropout == ModelDropout::Config { self.config.attention_dropout } else { 0.0 }
    }
}
