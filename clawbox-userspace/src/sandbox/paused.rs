//! Every sandbox at once under no policy, while what is allowed could not be recorded.

use super::host::Host;
use super::life::Sandbox;
use super::run::RunError;

impl Host {
    /// Whether no policy is in force; see [`Host::pause`].
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.kernel.enforcer.is_paused()
    }

    /// Whether an earlier clawbox has left it so: it is on, until [`Host::resume`].
    ///
    /// # Errors
    /// The kernel's tables cannot be read.
    pub fn find_paused(&mut self) -> Result<(), RunError> {
        let numbers: Vec<u32> = self.cgroups()?.into_iter().map(|(_, number)| number).collect();
        Ok(self.kernel.enforcer.find_paused(&numbers)?)
    }

    /// Has every sandbox denied everything, those to come too.
    ///
    /// # Errors
    /// One may not be; call it again.
    pub fn pause(&mut self) -> Result<(), RunError> {
        let numbers: Vec<u32> = self.sandboxes().map(Sandbox::number).collect();
        Ok(self.kernel.enforcer.pause(&numbers)?)
    }

    /// Each is under its policy again.
    ///
    /// # Errors
    /// Some are not; call it again.
    pub fn resume(&mut self) -> Result<(), RunError> {
        Ok(self.kernel.enforcer.resume()?)
    }
}
