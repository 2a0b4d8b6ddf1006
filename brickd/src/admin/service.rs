//! The gRPC face of the admin service: one line a call.

use mortar_proto::control::admin_server::Admin;
use mortar_proto::control::{
    BrickName, Done, Empty, PeerDetachRequest, PeerName, PeerStatusReply, RegistryRecoverRequest,
    RegistryStatusReply, VolumeCreateRequest, VolumeHealReply, VolumeHealRequest, VolumeName,
    VolumeReplaceBrickRequest, VolumeResetBrickRequest, VolumeResetRequest, VolumeSetRequest,
    VolumeStartRequest, VolumeStatusReply,
};
use mortar_proto::registry::{BrickStatus, View};
use tonic::{Request, Response, Status};

use super::{AdminService, REGISTRY_ANSWER_MAX, Refusal};

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Admin for AdminService {
    type VolumeCheckStream = super::check::Told;

    async fn peer_probe(&self, request: Request<PeerName>) -> Answer<Done> {
        let host = request.into_inner().host;
        self.to_the_end(|admin| async move { admin.probe(&host).await })
            .await
    }

    async fn peer_detach(&self, request: Request<PeerDetachRequest>) -> Answer<Done> {
        let request = request.into_inner();
        self.to_the_end(|admin| async move { admin.detach(request).await })
            .await
    }

    async fn peer_status(&self, _: Request<Empty>) -> Answer<PeerStatusReply> {
        Ok(Response::new(AdminService::peer_status(self).await))
    }

    async fn volume_create(&self, request: Request<VolumeCreateRequest>) -> Answer<Done> {
        let request = request.into_inner();
        self.to_the_end(|admin| async move { admin.create_volume(request).await })
            .await
    }

    async fn volume_start(&self, request: Request<VolumeStartRequest>) -> Answer<Done> {
        let request = request.into_inner();
        self.to_the_end(|admin| async move { admin.start_volume(request).await })
            .await
    }

    async fn volume_stop(&self, request: Request<VolumeName>) -> Answer<Done> {
        let name = request.into_inner().volume;
        self.to_the_end(|admin| async move { admin.stop_volume(&name).await })
            .await
    }

    async fn volume_delete(&self, request: Request<VolumeName>) -> Answer<Done> {
        let name = request.into_inner().volume;
        self.to_the_end(|admin| async move { admin.delete_volume(&name).await })
            .await
    }

    async fn volume_set(&self, request: Request<VolumeSetRequest>) -> Answer<Done> {
        let request = request.into_inner();
        self.to_the_end(|admin| async move { admin.set_options(request).await })
            .await
    }

    async fn volume_reset(&self, request: Request<VolumeResetRequest>) -> Answer<Done> {
        let request = request.into_inner();
        self.to_the_end(|admin| async move { admin.reset_options(request).await })
            .await
    }

    async fn volume_replace_brick(
        &self,
        request: Request<VolumeReplaceBrickRequest>,
    ) -> Answer<Done> {
        let request = request.into_inner();
        self.to_the_end(|admin| async move { admin.replace_brick(request).await })
            .await
    }

    async fn volume_reset_brick(&self, request: Request<VolumeResetBrickRequest>) -> Answer<Done> {
        let request = request.into_inner();
        self.to_the_end(|admin| async move { admin.reset_brick(request).await })
            .await
    }

    async fn get_view(&self, _: Request<Empty>) -> Answer<View> {
        Ok(Response::new(self.registry.view().as_ref().clone()))
    }

    async fn volume_status(&self, request: Request<VolumeName>) -> Answer<VolumeStatusReply> {
        Ok(Response::new(
            AdminService::volume_status(self, &request.into_inner().volume).await,
        ))
    }

    async fn volume_heal(&self, request: Request<VolumeHealRequest>) -> Answer<VolumeHealReply> {
        Ok(Response::new(self.heal_volume(request.into_inner()).await))
    }

    async fn volume_check(&self, request: Request<VolumeName>) -> Answer<Self::VolumeCheckStream> {
        Ok(Response::new(
            self.check_volume(request.into_inner().volume),
        ))
    }

    async fn brick_stop(&self, request: Request<BrickName>) -> Answer<Done> {
        let brick = request.into_inner().brick;
        let down = BrickStatus::BrickDown;
        self.to_the_end(|admin| async move { admin.move_brick(&brick, down).await })
            .await
    }

    async fn brick_start(&self, request: Request<BrickName>) -> Answer<Done> {
        let brick = request.into_inner().brick;
        let up = BrickStatus::BrickUp;
        self.to_the_end(|admin| async move { admin.move_brick(&brick, up).await })
            .await
    }

    async fn registry_status(&self, _: Request<Empty>) -> Answer<RegistryStatusReply> {
        match tokio::time::timeout(REGISTRY_ANSWER_MAX, self.registry.status()).await {
            Ok(reply) => Ok(Response::new(reply)),
            Err(_) => Err(Status::deadline_exceeded(
                "the registry of this host does not answer",
            )),
        }
    }

    async fn registry_recover(&self, request: Request<RegistryRecoverRequest>) -> Answer<Done> {
        let force = request.into_inner().force;
        self.to_the_end(|admin| async move { admin.recover(force).await })
            .await
    }
}

impl AdminService {
    async fn recover(&self, force: bool) -> Result<String, Refusal> {
        if !force {
            return Err(Refusal::new(
                "recovering the registry from this peer alone forgets what the others know: it \
                 takes --force",
            ));
        }
        self.registry.recover().await
    }

    /// Carries a change out on a task of its own: a CLI that is interrupted in the middle drops
    /// its call, and what was begun must still be ended or undone.
    async fn to_the_end<F>(&self, change: impl FnOnce(AdminService) -> F) -> Answer<Done>
    where
        F: Future<Output = Result<String, Refusal>> + Send + 'static,
    {
        match tokio::spawn(change(self.clone())).await {
            Ok(Ok(message)) => Ok(Response::new(Done {
                failed: false,
                message,
            })),
            Ok(Err(Refusal(message))) => Ok(Response::new(Done {
                failed: true,
                message,
            })),
            Err(error) => Err(Status::internal(format!("the command failed: {error}"))),
        }
    }
}
