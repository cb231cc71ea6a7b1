//! Connections between the processes of a fleet: QUIC, mutual TLS 1.3, framing. Never decides who may do what,
//! and stores nothing but keys.
//!
//! ```text
//! authority    the scheduler's certificate authority
//! identity     a member's key and certificate, in a folder
//! token        what makes a stranger a member, once
//! server       accepts connections; every ALPN but join needs a valid certificate before a byte is read
//! connect      dials: `connect` for members, `join` for strangers
//! channel      Link (a connection), Channel (a stream): frames of one message, raw bytes behind them
//! client, bulk what ctl asks; files by content
//! settings     every limit and window, with its reason
//! ```

mod authority;
mod bulk;
mod certificate;
mod channel;
mod client;
mod connect;
mod error;
mod files;
mod identity;
mod raw;
mod server;
pub mod settings;
mod tls;
mod token;

pub use authority::{Authority, Validity};
pub use bulk::{Bulk, LocalFile};
pub use channel::{Channel, CloseCode, Link, Receiver, Sender};
pub use client::{Client, Replies};
pub use connect::{connect, join};
pub use error::LinkError;
pub use identity::{
    Identity, PendingIdentity, advertised_address, save_advertised_address, save_scheduler_address,
    scheduler_address,
};
pub use raw::hash_file;
pub use server::{Incoming, Server};
pub use token::Token;
