//! What the copies write through, as clients are told of it.

use mortar_proto::data::PageCache;

use super::Replica;

impl Replica {
    /// The page cache that this copy writes through, and those of the copies in sync with it. That
    /// of a host is another one after each boot; a disk that is taken away without one fails.
    pub fn page_caches(&self) -> Vec<PageCache> {
        let mut caches = vec![self.own_page_cache()];
        let streams = self.streams.lock();
        let joined = streams.values().filter(|stream| stream.joined);
        caches.extend(joined.filter_map(|stream| stream.page_cache.clone()));
        caches
    }

    pub(super) fn own_page_cache(&self) -> PageCache {
        PageCache {
            brick: self.setting.me.0,
            name: self.absent.writer().boot.clone().into(),
        }
    }
}
