//! The specification of `embed`.

use crate::Real;

/// Returns out [tokens, hidden].
pub fn forward<R: Real>(
    token: &[u32],
    position: &[u32],
    kind: &[u32],
    tables: [&[R]; 3],
    hidden: usize,
) -> Vec<R> {
    let mut out = Vec::new();
    for t in 0..token.len() {
        for h in 0..hidden {
            let word = tables[0][token[t] as usize * hidden + h];
            let place = tables[1][position[t] as usize * hidden + h];
            out.push(word + place + tables[2][kind[t] as usize * hidden + h]);
        }
    }
    out
}

/// Returns out [tokens, hidden].
pub fn words<R: Real>(token: &[u32], word: &[R], hidden: usize) -> Vec<R> {
    token.iter().flat_map(|id| &word[*id as usize * hidden..][..hidden]).copied().collect()
}
