//! Programs that are measured beside clawbox: each ends with the measurement.

use std::process::Child;

/// A process that ends with this.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
