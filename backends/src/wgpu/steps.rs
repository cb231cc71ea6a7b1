//! Loops that a device which computes on the processor would cut short. Mesa's llvmpipe counts the rounds of all loops
//! of an invocation, ends whatever loop it is in after 65,535, and goes on with what it has: a wrong result without a
//! word. What could take more is refused there.
//!
//! A round more is counted for each time that a loop is left.

use motley_kernels::{Arguments, Entry, attention, cosent, lora, squared_error, sum_squares};

/// Rounds of an invocation, less some for what is not counted here.
pub(super) const MOST: u64 = 65_000;

/// Rounds of loops of one invocation, at most, of entries that can take many: those over texts, pairs, rows of a batch,
/// ranks or parameters. Others go over the width of a row at most.
pub(super) fn of_entry(entry: &'static Entry, arguments: &[u8]) -> u64 {
    let is = |other: &'static Entry| std::ptr::eq(entry, other);
    if is(&attention::FORWARD) || is(&attention::BACKWARD) {
        of_attention(attention::Args::of(arguments), is(&attention::FORWARD))
    } else if is(&lora::OUTER) {
        u64::from(lora::Args::of(arguments).rows.div_ceil(16)) * 10
    } else if is(&lora::DOT) {
        let lora::Args { rank, width, .. } = lora::Args::of(arguments);
        u64::from(rank.div_ceil(8)) * (u64::from(width.div_ceil(64)) * 10 + 76)
    } else if is(&lora::EXPAND) {
        let lora::Args { rank, width, .. } = lora::Args::of(arguments);
        u64::from(width.div_ceil(64)) * u64::from(rank + 2)
    } else if is(&cosent::FORWARD_BACKWARD) {
        let pairs = u64::from(cosent::Args::of(arguments).pairs);
        3 * pairs.div_ceil(256) * (pairs + 2)
    } else if is(&sum_squares::FORWARD) {
        u64::from(sum_squares::Args::of(arguments).count.div_ceil(256))
    } else if is(&squared_error::FORWARD_BACKWARD) {
        u64::from(squared_error::Args::of(arguments).count.div_ceil(256))
    } else {
        0
    }
}

/// Pooling goes over the same texts, a few rounds a token: it is never the first to take too many.
fn of_attention(args: attention::Args, is_forward: bool) -> u64 {
    let vectors = u64::from(args.head_dim.div_ceil(4));
    // Vectors that do not lie on one are read element by element.
    let reading = if args.head_dim.is_multiple_of(4) { 0 } else { 5 * vectors };
    let drawing = if args.dropout > 0.0 { 11 } else { 0 };
    let rounds = 2 + drawing + if is_forward { 3 * vectors + 3 } else { 2 * vectors + 2 } + 3 * reading;
    let heads = if is_forward { 1 } else { u64::from((args.heads / args.kv_heads.max(1)).max(1)) };
    heads * u64::from(args.longest) * rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_grow_with_what_loops_go_over() {
        let mut args: attention::Args = bytemuck::Zeroable::zeroed();
        (args.longest, args.heads, args.kv_heads, args.head_dim) = (1000, 8, 2, 64);
        let of = |entry: &'static Entry, args: &attention::Args| of_entry(entry, bytemuck::bytes_of(args));
        assert_eq!(of(&attention::FORWARD, &args), 53_000);
        assert_eq!(of(&attention::BACKWARD, &args), 4 * 36_000);
        assert_eq!(of(&attention::ALONG, &args), 0);
        let pairs = |pairs| {
            of_entry(&cosent::FORWARD_BACKWARD, bytemuck::bytes_of(&cosent::Args { pairs, scale: 1.0 }))
        };
        assert!(pairs(2048) < MOST && pairs(4096) > MOST);
    }
}
