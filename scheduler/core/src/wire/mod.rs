//! Messages between processes, and their bytes.
//!
//! One connection, one ALPN, one direction of trust each:
//!
//! | ALPN             | who            | certificate | streams                                                      |
//! |------------------|----------------|-------------|--------------------------------------------------------------|
//! | `motley-join/1`  | agent, user    | none        | one: `JoinRequest` (≤ 8 KiB) → `JoinReply`                   |
//! | `motley-agent/1` | agent          | node        | first: `Hello` ⇄ `HelloReply`, then `FromAgent` / `ToAgent`   |
//! | `motley-client/1`| ctl            | user        | first: `Hello` ⇄ `HelloReply`; then one per `FromClient`      |
//! | `motley-bulk/1`  | agent, ctl     | node, user  | first: `Hello` ⇄ `HelloReply`; then one per `BulkRequest`, raw bytes behind it |
//!
//! A frame is a little-endian `u32` length and so many bytes of one message. Enums only grow at their end:
//! golden files pin the bytes. A new field is a new variant, and every variant knows since which version it exists
//! ([`Message::since`]): nothing newer than what the hellos agreed on is sent.
//!
//! | version | what came with it          |
//! |---------|----------------------------|
//! | 1       | everything else            |
//! | 2       | `FromClient::JobsBefore`   |
//! | 3       | `FromAgent::ReportDevices`, `Devices` of clients |

pub mod agent;
pub mod bulk;
pub mod client;
pub mod codec;
#[cfg(fuzzing)]
pub mod fuzz;
#[cfg(test)]
mod golden;
pub mod hello;
pub mod join;
mod since;

pub use since::Message;

/// ALPN names.
pub const ALPN_JOIN: &[u8] = b"motley-join/1";
pub const ALPN_AGENT: &[u8] = b"motley-agent/1";
pub const ALPN_CLIENT: &[u8] = b"motley-client/1";
pub const ALPN_BULK: &[u8] = b"motley-bulk/1";

/// Protocol version spoken by this build, and the oldest it still speaks.
pub const VERSION: u16 = 3;
pub const VERSION_MIN: u16 = 2;
