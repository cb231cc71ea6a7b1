//! What `ctl` and tests ask a scheduler: one stream a request.

use std::path::Path;

use motley_scheduler_core::wire::ALPN_CLIENT;
use motley_scheduler_core::wire::client::{FromClient, ToClient};

use crate::settings::REPLY_SECONDS;
use crate::{Identity, Link, LinkError, Receiver, connect, scheduler_address};

/// A connection to a scheduler, for requests.
#[derive(Debug, Clone)]
pub struct Client {
    link: Link,
}

/// The replies to one request.
#[derive(Debug)]
pub struct Replies {
    receiver: Receiver,
}

impl Client {
    /// Connects as the user of `identity`.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn connect(address: &str, identity: &Identity) -> Result<Client, LinkError> {
        Ok(Client { link: connect(address, ALPN_CLIENT, identity).await? })
    }

    /// Connects with the identity and the address of a folder, such as the one that the scheduler writes for the
    /// local admin.
    ///
    /// # Errors
    /// The folder is incomplete, or as [`connect`].
    pub async fn open(folder: &Path) -> Result<Client, LinkError> {
        let address = scheduler_address(folder)?;
        Client::connect(&address, &Identity::load(folder)?).await
    }

    /// Asks, and returns the one reply; [`ToClient::Refused`] is a reply like others.
    ///
    /// # Errors
    /// The connection is gone, or no reply comes within a minute.
    pub async fn request(&self, request: FromClient) -> Result<ToClient, LinkError> {
        let mut replies = self.stream(request).await?;
        replies.receiver.receive_within("reply", REPLY_SECONDS).await
    }

    /// Asks, for requests with several replies (`Logs`, `Watch`).
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn stream(&self, request: FromClient) -> Result<Replies, LinkError> {
        let mut channel = self.link.open().await?;
        channel.send(&request).await?;
        channel.finish();
        Ok(Replies { receiver: channel.receiver })
    }

    /// The protocol version that both ends speak.
    pub fn version(&self) -> u16 {
        self.link.version()
    }

    /// Waits for the end of the connection, and says why.
    pub async fn closed(&self) -> LinkError {
        self.link.closed().await
    }

    /// Says good-bye.
    pub async fn close(&self) {
        self.link.shut_down("done").await;
    }
}

impl Replies {
    /// The next reply, whenever it comes; `None` at the end. May be dropped half-way and called again.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn next(&mut self) -> Result<Option<ToClient>, LinkError> {
        self.receiver.receive().await
    }
}
