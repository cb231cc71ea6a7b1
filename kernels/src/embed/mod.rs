//! Sum of three embeddings, or those of words alone.
//!
//! forward: out[t] = word[token[t]] + position[positions[t]] + kind[types[t]]
//! words:   out[t] = word[token[t]]
//!
//! `word` is a piece of the table of words: rows from `first_word` on, as a device may bind less than the whole. Only
//! tokens of these words are written, so that one launch for each piece writes all.
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
        /// Id of the first row of `word`.
        pub first_word: u32,
        /// Rows of `word`.
        pub words: u32,
    }
}

impl Args {
    /// Where in the piece a word is, if it is there.
    fn row(&self, id: u32) -> Option<usize> {
        id.checked_sub(self.first_word).filter(|row| *row < self.words).map(|row| row as usize)
    }
}

/// `token_ids`, `position_ids`, `type_ids`: u32 [tokens], in range (the caller checks); tables [rows, hidden];
/// `out` [tokens, hidden], in the rows of tokens whose word is in the piece.
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
            let [word, place, type_] = [random(9 * hidden, 4), random(6 * hidden, 5), random(2 * hidden, 6)];
            for piece in [0..9, 0..4, 4..9, 3..3] {
                let args = Args {
                    tokens: tokens as u32,
                    hidden: hidden as u32,
                    first_word: piece.start as u32,
                    words: piece.len() as u32,
                };
                let word = &word[piece.start * hidden..piece.end * hidden];
                let before = random(tokens * hidden, 7);
                let (mut sums, mut alone) = (before.clone(), before.clone());
                reference::forward([&token, &position, &kind], [word, &place, &type_], &args, &mut sums);
                reference::words(&token, word, &args, &mut alone);
                let buffers = Buffers::new().u32(&token).u32(&position).u32(&kind).f32(word);
                let got = buffers.f32(&place).f32(&type_).updated(&before).run(&FORWARD, args);
                assert_eq!(got[0], sums);
                let got = Buffers::new().u32(&token).f32(word).updated(&before).run(&WORDS, args);
                assert_eq!(got[0], alone);
            }
        }
    }
}
