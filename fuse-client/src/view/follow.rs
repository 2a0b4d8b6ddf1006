//! The asking side of the view: one host after the other, for as long as the mount lives.

use std::time::Duration;

use mortar_proto::WIRE_VERSION;
use mortar_proto::control::pool_client::PoolClient;
use mortar_proto::control::{Empty, WatchViewRequest};
use tonic::transport::{Channel, Endpoint};

use super::{Host, Shared};

/// A host that does not take the connection within this is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A host whose answers stay away this long is passed over: a ping goes out after half of it.
const SILENCE: Duration = Duration::from_secs(4);
/// Pause after a round in which no host answered: begins here …
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// … and doubles up to this.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Largest view taken: a pool of hundreds of volumes stays far below.
const VIEW_BYTES_MAX: usize = 64 << 20;

/// Follows the view from one host after the other.
pub(super) async fn forever(shared: &Shared, bootstrap: &[Host]) {
    let mut pause = PAUSE_FIRST;
    loop {
        let mut heard = false;
        for host in candidates(shared, bootstrap) {
            match follow(shared, &host).await {
                Ok(()) => heard = true,
                Err(problem) => {
                    tracing::debug!("no view from {host}: {problem}");
                    shared.failed(problem);
                }
            }
        }
        if heard {
            pause = PAUSE_FIRST;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Bootstrap hosts first, then every peer of the view.
fn candidates(shared: &Shared, bootstrap: &[Host]) -> Vec<Host> {
    let mut hosts = bootstrap.to_vec();
    for host in &shared.lock().hosts {
        if !hosts.contains(host) {
            hosts.push(host.clone());
        }
    }
    hosts
}

/// Takes in views from one host until its stream ends; an error when it gave none.
async fn follow(shared: &Shared, host: &Host) -> Result<(), String> {
    let mut pool = connect(host).await?;
    let identity = match tokio::time::timeout(SILENCE, pool.identify(Empty {})).await {
        Ok(Ok(identity)) => identity.into_inner(),
        Ok(Err(status)) => {
            return Err(format!(
                "{host} does not answer as brickd does: {}",
                status.message()
            ));
        }
        Err(_) => return Err(format!("{host} takes connections but does not answer")),
    };
    if identity.wire_version != WIRE_VERSION {
        return Err(format!(
            "{host} speaks wire version {}, this client {WIRE_VERSION}; install the same version \
             of Mortar on both",
            identity.wire_version
        ));
    }
    let request = WatchViewRequest { after_index: 0 };
    let mut views = match tokio::time::timeout(SILENCE, pool.watch_view(request)).await {
        Ok(Ok(views)) => views.into_inner(),
        Ok(Err(status)) => return Err(format!("{host} gives no view: {}", status.message())),
        Err(_) => return Err(format!("{host} takes connections but gives no view")),
    };
    let mut heard = false;
    loop {
        match views.message().await {
            Ok(Some(view)) => {
                shared
                    .learn(&view)
                    .map_err(|problem| format!("{host}: {problem}"))?;
                heard = true;
            }
            Ok(None) if heard => return Ok(()),
            Ok(None) => return Err(format!("{host} ended the view before it began")),
            Err(status) if heard => {
                tracing::debug!("the view from {host} ended: {}", status.message());
                return Ok(());
            }
            Err(status) => return Err(format!("{host} gives no view: {}", status.message())),
        }
    }
}

async fn connect(host: &Host) -> Result<PoolClient<Channel>, String> {
    let endpoint = Endpoint::from_shared(format!("http://{host}"))
        .map_err(|_| format!("'{host}' is not the name of a host"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(SILENCE / 2)
        .keep_alive_timeout(SILENCE / 2)
        .keep_alive_while_idle(true);
    match tokio::time::timeout(CONNECT_TIMEOUT * 2, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(PoolClient::new(channel).max_decoding_message_size(VIEW_BYTES_MAX)),
        Ok(Err(error)) => Err(format!("cannot reach {host}: {}", innermost(&error))),
        Err(_) => Err(format!("cannot reach {host}: no answer")),
    }
}

/// The words of the error that began it all; tonic's own say only "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
