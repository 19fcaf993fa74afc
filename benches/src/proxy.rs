//! A forward proxy as one would write it today: hyper, tokio, CONNECT and nothing else. It stands for the
//! userspace proxies that sandboxes are given elsewhere.

use std::convert::Infallible;
use std::io::Write;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, upgrade};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// The argument that makes this program a proxy.
pub const ARGUMENT: &str = "proxy";

/// Says where it listens, and serves until it is killed.
pub fn serve() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        loop {
            let (client, _) = listener.accept().await?;
            client.set_nodelay(true)?;
            tokio::spawn(async move {
                let service = service_fn(tunnel);
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(client), service);
                // Who hangs up has what it wanted.
                let _ = connection.with_upgrades().await;
            });
        }
    })
}

async fn tunnel(request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let to = request.uri().authority().map(ToString::to_string);
    let server = match to {
        Some(to) if request.method() == Method::CONNECT => TcpStream::connect(to).await.ok(),
        _ => None,
    };
    let mut response = Response::new(Empty::new());
    match server {
        Some(mut server) => {
            tokio::spawn(async move {
                let client = upgrade::on(request).await.context("no upgrade")?;
                copy_bidirectional(&mut TokioIo::new(client), &mut server).await?;
                anyhow::Ok(())
            });
        }
        None => *response.status_mut() = StatusCode::BAD_GATEWAY,
    }
    Ok(response)
}
