//! The limit on open files, which bounds how many clients there can be.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept for everything that is no client: logs, Raft, links, listeners, operators.
const RESERVED: u64 = 256;

/// Raises the soft limit to the hard one, and returns how many clients fit under it.
#[must_use]
pub fn clients_max(wanted: u64) -> u64 {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limits.maximum,
        Err(_) => limits.current,
    };
    let fit = fit(wanted, current);
    if fit < wanted {
        tracing::info!(wanted, limit = fit, "limits.connections is lowered to fit the limit on open files (ulimit -n)");
    }
    fit
}

/// No limit is `None`. At least one client is let in, whatever the limit.
fn fit(wanted: u64, descriptors: Option<u64>) -> u64 {
    // A limit too low for the reserve leaves half of it to clients.
    let room = descriptors.map(|descriptors| descriptors.saturating_sub(RESERVED).max(descriptors / 2));
    room.map_or(wanted, |room| room.min(wanted)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_room_for_everything_else() {
        assert_eq!(fit(50_000, None), 50_000);
        assert_eq!(fit(50_000, Some(1_048_576)), 50_000);
        assert_eq!(fit(50_000, Some(1024)), 768);
        assert_eq!(fit(50_000, Some(64)), 32);
        assert_eq!(fit(50_000, Some(0)), 1);
    }
}
