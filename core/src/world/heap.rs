//! The ordinary heap as the core's memory: for worlds whose faults do not depend on it, such as a simulated kernel.

use std::sync::Arc;

use allocator_api2::alloc::Global;

use super::{Metadata, OutOfMetadata};
use crate::notifier::Subscriber;

impl Metadata for Global {
    type Shared<T: ?Sized + Send + Sync + 'static> = Arc<T>;

    fn share<T: Send + Sync + 'static>(value: T) -> Result<Arc<T>, OutOfMetadata> {
        Ok(Arc::new(value))
    }

    fn share_subscriber<T: Subscriber>(value: T) -> Result<Arc<dyn Subscriber>, OutOfMetadata> {
        Ok(Arc::new(value))
    }

    /// The heap does not say.
    fn bytes_in_use() -> usize {
        0
    }
}
