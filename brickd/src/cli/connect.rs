//! The way to a brickd: its admin socket, or its port.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use mortar_proto::control::admin_client::AdminClient;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::Failure;
use super::ask::Asker;
use super::grammar::{Global, host_and_port};
use crate::admin::MESSAGE_BYTES_MAX;

/// How long connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// One run of the command line: where its brickd is and how long it may take.
pub struct Session<'a> {
    global: &'a Global,
    timeout: Duration,
}

impl<'a> Session<'a> {
    /// For these flags; nothing is connected yet.
    pub fn new(global: &'a Global) -> Self {
        Session {
            global,
            timeout: Duration::from_secs(global.timeout),
        }
    }

    /// Who answers questions.
    pub fn asker(&self) -> Asker {
        Asker::new(self.global.mode)
    }

    /// Connects.
    pub async fn client(&self) -> Result<AdminClient<Channel>, Failure> {
        let limit = CONNECT_MAX.min(self.timeout);
        let connected = match &self.global.host {
            Some(host) => tokio::time::timeout(limit, over_tcp(host)).await,
            None => tokio::time::timeout(limit, self.over_socket()).await,
        };
        let channel = connected
            .map_err(|_| self.unreachable("it does not answer"))?
            .map_err(|why| self.unreachable(&why))?;
        Ok(AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Waits for one answer, no longer than `--timeout`.
    pub async fn call<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout, call).await {
            Err(_) => Err(Failure(format!(
                "Error : Request timed out after {} s; the command may still be carried out",
                self.timeout.as_secs()
            ))),
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(match status.code() {
                tonic::Code::Unavailable => self.unreachable("the connection was lost"),
                tonic::Code::Unimplemented => Failure(
                    "brickd does not know this command: it is of another version".to_owned(),
                ),
                _ => Failure(format!("brickd failed: {}", status.message())),
            }),
        }
    }

    async fn over_socket(&self) -> Result<Channel, String> {
        let path = self.global.socket.clone();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move {
                tokio::net::UnixStream::connect(path)
                    .await
                    .map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://brickd");
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| root_cause(&error))
    }

    fn unreachable(&self, why: &str) -> Failure {
        let place = match &self.global.host {
            Some(host) => host_and_port(host),
            None => self.global.socket.display().to_string(),
        };
        Failure(format!(
            "Connection failed. Please check if brickd is operational. ({place}: {why})"
        ))
    }
}

async fn over_tcp(host: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{}", host_and_port(host)))
        .map_err(|_| "that is not HOST[:PORT]".to_owned())?;
    endpoint
        .tcp_nodelay(true)
        .connect()
        .await
        .map_err(|error| root_cause(&error))
}

/// The innermost error: tonic's own words ("transport error") say nothing.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
