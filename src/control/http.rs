//! `GET /status` as JSON, on a thread of its own. Any other path is 404, any other method 405.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::warn;

use super::report::Report;
use crate::engine::shared::Shared;
use crate::fault::{Fault, FaultKind};
use crate::limits::MAX_STATUS_CONNECTIONS;

/// The running server. Dropping it ends it without waiting for slow readers.
#[derive(Debug)]
pub struct StatusServer {
    /// Where it listens; tells the port when 0 was asked for.
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StatusServer {
    /// Listens on `address` (`HOST:PORT`) and serves.
    pub fn start(address: &str, shared: &Arc<Shared>) -> Result<Self, Fault> {
        let refused = |why: String| {
            let text = format!("--status-addr {address}: {why}; choose another HOST:PORT");
            Fault::new(FaultKind::StatusAddress, text)
        };
        let (listener, bound) = listen(address).map_err(|error| refused(error.to_string()))?;
        let page = Arc::clone(shared);
        let (stop, stopped) = oneshot::channel();
        let spawned = Builder::new().name("status".into()).spawn(move || {
            if let Err(error) = serve(listener, page, stopped) {
                warn!("the status page ended: {error}");
            }
        });
        let thread = spawned.map_err(|error| refused(error.to_string()))?;
        Ok(Self {
            address: bound,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for StatusServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Fails only when the thread has ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(address: &str) -> io::Result<(std::net::TcpListener, SocketAddr)> {
    let addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    let listener = std::net::TcpListener::bind(&addresses[..])?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

fn serve(
    listener: std::net::TcpListener,
    page: Arc<Shared>,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = Bounded {
            listener: TcpListener::from_std(listener)?,
            free: Arc::new(Semaphore::new(MAX_STATUS_CONNECTIONS)),
        };
        let router = Router::new().route("/status", get(status)).with_state(page);
        tokio::select! {
            ended = axum::serve(listener, router) => ended,
            _ = stopped => Ok(()),
        }
    })
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    let report = Report::of(&shared, Instant::now());
    match serde_json::to_vec(&report) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Accepts only while fewer than [`MAX_STATUS_CONNECTIONS`] are open; the others wait in the backlog.
struct Bounded {
    listener: TcpListener,
    free: Arc<Semaphore>,
}

/// A connection and its place among the open ones.
struct Held {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl Listener for Bounded {
    type Io = Held;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Held, SocketAddr) {
        // The semaphore is never closed, so there is always a place in the end.
        let _place = Arc::clone(&self.free).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Held { stream, _place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;
    use std::io::{Read, Write};

    /// Status line and body of the answer to one request.
    fn ask(address: SocketAddr, request: &str) -> (String, String) {
        let mut stream = std::net::TcpStream::connect(address).expect("listening");
        let text = format!("{request} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
        let line = head.lines().next().unwrap_or_default();
        (line.to_owned(), body.to_owned())
    }

    #[test]
    fn only_get_status_is_served() {
        let single = Topology::single;
        let shared = Shared::new(
            "mine".into(),
            Instant::now(),
            single("a", 1),
            single("b", 2),
        );
        let server = StatusServer::start("127.0.0.1:0", &Arc::new(shared)).expect("a free port");
        let (line, body) = ask(server.address, "GET /status");
        assert_eq!(line, "HTTP/1.1 200 OK");
        let json: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(json["link"], "mine");
        assert!(ask(server.address, "GET /").0.contains("404"));
        assert!(ask(server.address, "POST /status").0.contains("405"));
    }

    #[test]
    fn an_address_in_use_is_a_fault_that_names_the_option() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("bound").to_string();
        let single = Topology::single;
        let shared = Shared::new("l".into(), Instant::now(), single("a", 1), single("b", 2));
        let fault = StatusServer::start(&address, &Arc::new(shared)).expect_err("taken");
        assert_eq!(fault.kind, FaultKind::StatusAddress);
        assert!(fault.message.contains("--status-addr"), "{fault}");
    }
}
