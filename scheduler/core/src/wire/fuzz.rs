//! The entry of fuzzers: any bytes are some message, or none, and neither is fatal.
//!
//! Compiled into the crate with `--cfg fuzzing` alone. The property tests (`tests/decoder.rs`) mount this file and put
//! mutated golden messages through the same function; that is why it names the crate from outside.

use motley_scheduler_core::cluster::Change;
use motley_scheduler_core::wire::agent::{FromAgent, ToAgent};
use motley_scheduler_core::wire::bulk::{BulkReply, BulkRequest};
use motley_scheduler_core::wire::client::{FromClient, ToClient};
use motley_scheduler_core::wire::codec::{Limit, decode, encode};
use motley_scheduler_core::wire::hello::{Hello, HelloReply};
use motley_scheduler_core::wire::join::{JoinReply, JoinRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What the first byte stands for, in this order and over again.
pub const TYPES: [(&str, Limit); 11] = [
    ("FromAgent", Limit::Agent),
    ("ToAgent", Limit::Agent),
    ("FromClient", Limit::Client),
    ("ToClient", Limit::Client),
    ("BulkRequest", Limit::Bulk),
    ("BulkReply", Limit::Bulk),
    ("Hello", Limit::Join),
    ("HelloReply", Limit::Join),
    ("JoinRequest", Limit::Join),
    ("JoinReply", Limit::Join),
    ("Change", Limit::Client),
];

/// Decodes what follows the first byte as the type that the first byte says; what is accepted survives another round.
/// Says whether it was accepted.
///
/// # Panics
/// An accepted message cannot be written, or not be read again: a mistake of the codec.
pub fn message(bytes: &[u8]) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else { return false };
    let (name, limit) = TYPES[usize::from(*kind) % TYPES.len()];
    match name {
        "FromAgent" => survives::<FromAgent>(bytes, limit),
        "ToAgent" => survives::<ToAgent>(bytes, limit),
        "FromClient" => survives::<FromClient>(bytes, limit),
        "ToClient" => survives::<ToClient>(bytes, limit),
        "BulkRequest" => survives::<BulkRequest>(bytes, limit),
        "BulkReply" => survives::<BulkReply>(bytes, limit),
        "Hello" => survives::<Hello>(bytes, limit),
        "HelloReply" => survives::<HelloReply>(bytes, limit),
        "JoinRequest" => survives::<JoinRequest>(bytes, limit),
        "JoinReply" => survives::<JoinReply>(bytes, limit),
        "Change" => survives::<Change>(bytes, limit),
        other => unreachable!("{other} stands in the list above"),
    }
}

fn survives<T: Serialize + DeserializeOwned>(bytes: &[u8], limit: Limit) -> bool {
    let Ok(message) = decode::<T>(bytes, limit) else { return false };
    // Compared as bytes: NaN is not equal to itself.
    let once = encode(&message, limit).expect("it was within the limit before");
    let again = encode(&decode::<T>(&once, limit).expect("own bytes"), limit).expect("own bytes");
    assert_eq!(once, again);
    true
}
