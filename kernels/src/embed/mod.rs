//! Sum of three embeddings, or those of words alone.
//!
//! forward: out[t] = word[token[t]] + position[positions[t]] + kind[types[t]]
//! words:   out[t] = word[token[t]]
//!
//! Source: BERT (Devlin et al. 2018, section 3.2). The tables are frozen, so there is no backward entry.

mod cpu;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

arguments! {
    /// Scalars of both entries.
    pub struct Args {
        pub tokens: u32,
        pub hidden: u32,
    }
}

/// `token_ids`, `position_ids`, `type_ids`: u32 [tokens], in range (the caller checks); tables [rows, hidden];
/// `out` [tokens, hidden].
pub static FORWARD: Entry = Entry {
    name: "embed.forward",
    bindings: &[
        Binding::read_u32("token_ids"),
        Binding::read_u32("position_ids"),
        Binding::read_u32("type_ids"),
        Binding::input("word"),
        Binding::input("position"),
        Binding::input("token_type"),
        Binding::output("out"),
    ],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).tokens),
    wgsl: |args| Args::of(args).tokens,
    cpu: cpu::forward,
};

/// As `forward`, for models whose positions come in with the attention.
pub static WORDS: Entry = Entry {
    name: "embed.words",
    bindings: &[Binding::read_u32("token_ids"), Binding::input("word"), Binding::output("out")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::warps(Args::of(args).tokens),
    wgsl: |args| Args::of(args).tokens,
    cpu: cpu::words,
};

pub static KERNEL: Kernel = Kernel {
    name: "embed",
    entries: &[&FORWARD, &WORDS],
    cuda: include_str!("embed.cu"),
    wgsl: include_str!("embed.wgsl"),
};

#[cfg(test)]
mod tests {
    use crate::check::{Buffers, random};

    use super::*;

    #[test]
    fn fast_path_equals_the_specification() {
        for (tokens, hidden) in [(0, 4), (1, 1), (5, 7), (40, 33)] {
            let ids = |rows: u32, seed| {
                random(tokens, seed)
                    .iter()
                    .map(|x| ((x + 1.0) * 0.5 * rows as f32) as u32 % rows)
                    .collect::<Vec<_>>()
            };
            let (token, position, kind) = (ids(9, 1), ids(6, 2), ids(2, 3));
            let tables = [random(9 * hidden, 4), random(6 * hidden, 5), random(2 * hidden, 6)];
            let wanted =
                reference::forward(&token, &position, &kind, [&tables[0], &tables[1], &tables[2]], hidden);
            let args = Args { tokens: tokens as u32, hidden: hidden as u32 };
            let mut buffers = Buffers::new().u32(&token).u32(&position).u32(&kind);
            for table in &tables {
                buffers = buffers.f32(table);
            }
            let got = buffers.output(tokens * hidden).run(&FORWARD, args);
            assert_eq!(got[0], wanted);
            let got = Buffers::new().u32(&token).f32(&tables[0]).output(tokens * hidden).run(&WORDS, args);
            assert_eq!(got[0], reference::words(&token, &tables[0], hidden));
        }
    }
}
