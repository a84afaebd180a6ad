//! The other side of a control socket: what `glassine status` and the like use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::api::Failure;

/// How long an answer may take. The server takes less for the slowest.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// The longest answer that is taken: a list of thousands of exports is shorter.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A client of one control socket. Each request has a connection of its own.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A client; it does not connect yet.
    pub fn new(socket: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot talk to a control socket")?;
        Ok(Self { socket: socket.to_owned(), runtime })
    }

    /// Asks for something.
    pub fn get<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.request(Method::GET, path, Bytes::new())
    }

    /// Asks for something about an export.
    pub fn get_of<A: DeserializeOwned>(&self, path: &str, export: &str) -> anyhow::Result<A> {
        let mut query = form_urlencoded::Serializer::for_suffix(format!("{path}?"), path.len() + 1);
        self.get(&query.append_pair("export", export).finish())
    }

    /// Removes something.
    pub fn delete<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.request(Method::DELETE, path, Bytes::new())
    }

    /// Sends something, by POST or PUT.
    pub fn send<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<A> {
        let body = serde_json::to_vec(body).context("cannot put the request into words")?;
        self.request(method, path, body.into())
    }

    fn request<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<A> {
        let shown = self.socket.display();
        let answer = self.runtime.block_on(async {
            // Within the runtime, whose clock it needs.
            timeout(ANSWER_TIME_MAX, self.talk(method, path, body)).await
        });
        let answer = answer.map_err(|_| {
            let seconds = ANSWER_TIME_MAX.as_secs();
            anyhow!("the server at unix:{shown} does not answer within {seconds} seconds; is it stopped, or very busy?")
        })?;
        let (is_success, bytes) = answer?;
        if is_success {
            return serde_json::from_slice(&bytes).with_context(|| {
                format!("unix:{shown} gave an answer of another kind; is it a control socket of this version of glassine?")
            });
        }
        match serde_json::from_slice::<Failure>(&bytes) {
            Ok(Failure { error }) => bail!("{error}"),
            Err(_) => {
                bail!("unix:{shown} refused without a reason; is it a control socket of glassine?")
            }
        }
    }

    async fn talk(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<(bool, Bytes)> {
        let shown = self.socket.display();
        let stream = UnixStream::connect(&self.socket).await.with_context(|| {
            format!("cannot reach unix:{shown}; is it what a running server was given as --control, and are you its user?")
        })?;
        let lost = || format!("the server at unix:{shown} broke off; its log may say why");
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.with_context(lost)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .context("cannot put the request into words")?;
        let response = sender.send_request(request).await.with_context(lost)?;
        let is_success = response.status().is_success();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow!(error)).with_context(lost)?;
        Ok((is_success, body.to_bytes()))
    }
}
