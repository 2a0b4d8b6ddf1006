//! The registry as the admin service sees it.

use std::sync::Arc;

use mortar_common::PeerId;
use mortar_proto::control::RegistryStatusReply;
use mortar_proto::registry::{Command, Outcome, Peer, View};
use tonic::transport::Channel;

use crate::admin::{self, BoxFuture, Invited, Peers, ProposeError, Refusal};
use crate::registry::{self, Registry, RegistryError};

/// This process's registry, for the admin service.
pub(super) struct AdminRegistry(pub(super) Registry);

impl admin::Registry for AdminRegistry {
    fn view(&self) -> Arc<View> {
        self.0.view()
    }

    fn current_view(&self) -> BoxFuture<'_, Result<Arc<View>, String>> {
        Box::pin(async move { self.0.barrier().await.map_err(|error| error.to_string()) })
    }

    fn local(&self) -> Peer {
        self.0.local()
    }

    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ProposeError>> {
        Box::pin(async move { self.0.propose(command).await.map_err(propose_error) })
    }

    fn status(&self) -> BoxFuture<'_, RegistryStatusReply> {
        Box::pin(async move {
            self.0
                .status()
                .await
                .unwrap_or_else(|error| RegistryStatusReply {
                    state: error.to_string(),
                    ..RegistryStatusReply::default()
                })
        })
    }

    fn invite(&self, host: String) -> BoxFuture<'_, Result<Invited, Refusal>> {
        Box::pin(async move {
            let (host, port) = split_port(&host)?;
            let invited = self.0.invite(&host, port).await.map_err(Refusal::new)?;
            match &invited {
                registry::Invited::Joined(_) => Ok(Invited::Joined),
                registry::Invited::Returned(_) => Ok(Invited::Returned(invited.to_string())),
                registry::Invited::Localhost => Ok(Invited::Itself),
                registry::Invited::Already { port, .. } => {
                    Ok(Invited::AlreadyMember(u32::from(*port)))
                }
            }
        })
    }

    fn remove(&self, peer: PeerId, force: bool) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move { self.0.remove(peer, force).await.map_err(Refusal::new) })
    }

    fn recover(&self) -> BoxFuture<'_, Result<String, Refusal>> {
        Box::pin(async move {
            self.0.recover(true).await.map_err(Refusal::new)?;
            Ok(
                "a new generation of the pool begins with this peer; probe the others again"
                    .to_owned(),
            )
        })
    }
}

/// Channels to other peers: the registry keeps them.
pub(super) struct AdminPeers(pub(super) Registry);

impl Peers for AdminPeers {
    fn channel(&self, peer: &Peer) -> Result<Channel, Refusal> {
        self.0.connections().channel(peer).map_err(Refusal)
    }
}

fn propose_error(error: RegistryError) -> ProposeError {
    match error {
        RegistryError::Unknown { .. } => ProposeError::Unknown(error.to_string()),
        RegistryError::NoQuorum { .. }
        | RegistryError::NoLeader { .. }
        | RegistryError::NotWanted
        | RegistryError::Refused(_)
        | RegistryError::Storage { .. }
        | RegistryError::Stopped(_) => ProposeError::NotMade(error.to_string()),
    }
}

fn split_port(host: &str) -> Result<(String, u16), Refusal> {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') => {
            let port = port
                .parse()
                .map_err(|_| Refusal(format!("'{port}' in '{host}' is not a port")))?;
            Ok((name.to_owned(), port))
        }
        _ => Ok((host.to_owned(), super::DEFAULT_PORT)),
    }
}
