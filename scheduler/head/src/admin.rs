//! The local user's identity: how `ctl` on the scheduler's machine gets its first certificate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use motley_scheduler_core::authorize::Role;
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_link::{Authority, Identity, Validity, save_scheduler_address};

use crate::HeadError;

/// The key lies beside the authority's own: a shorter life would protect nothing.
const VALID: Duration = Duration::from_secs(365 * 86_400);

/// Renewed at a start when it would end within this.
const RENEW_BEFORE: Duration = Duration::from_secs(90 * 86_400);

const NAME: &str = "admin";

/// Writes the identity if there is none that will do, and the address in any case.
pub(crate) fn prepare(folder: &Path, authority: &Authority, address: SocketAddr) -> Result<(), HeadError> {
    let now = SystemTime::now();
    if !is_good(folder, authority, now) {
        let principal = Principal::User { name: NAME.to_owned(), role: Role::Admin };
        authority.issue(&principal, Validity::starting(now, VALID))?.save(folder)?;
        tracing::info!(folder = %folder.display(), "admin identity written");
    }
    save_scheduler_address(folder, &local(address).to_string())?;
    Ok(())
}

fn is_good(folder: &Path, authority: &Authority, now: SystemTime) -> bool {
    let Ok(identity) = Identity::load(folder) else { return false };
    identity.authority() == authority.certificate()
        && matches!(identity.principal(), Principal::User { role: Role::Admin, .. })
        && identity.expires() > now + RENEW_BEFORE
}

/// An address that this machine can dial: "all addresses" is none.
pub(crate) fn local(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use motley_scheduler_link::scheduler_address;

    #[test]
    fn identity_is_kept_while_it_will_do_and_replaced_when_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let authority = Authority::create().unwrap();
        let certificate = || std::fs::read(folder.join("certificate.pem")).unwrap();
        prepare(folder, &authority, "0.0.0.0:7443".parse().unwrap()).unwrap();
        assert_eq!(scheduler_address(folder).unwrap(), "127.0.0.1:7443");
        let first = certificate();
        prepare(folder, &authority, "10.1.2.3:1".parse().unwrap()).unwrap();
        assert_eq!(scheduler_address(folder).unwrap(), "10.1.2.3:1");
        assert_eq!(certificate(), first, "a good identity is kept");
        let principal = Principal::User { name: NAME.to_owned(), role: Role::Admin };
        let short = Validity::starting(SystemTime::now(), RENEW_BEFORE / 2);
        authority.issue(&principal, short).unwrap().save(folder).unwrap();
        prepare(folder, &authority, "[::]:9".parse().unwrap()).unwrap();
        assert_eq!(scheduler_address(folder).unwrap(), "[::1]:9");
        assert!(Identity::load(folder).unwrap().expires() > SystemTime::now() + RENEW_BEFORE, "renewed");
        let other = Authority::create().unwrap();
        prepare(folder, &other, "10.1.2.3:1".parse().unwrap()).unwrap();
        assert_eq!(Identity::load(folder).unwrap().authority(), other.certificate());
    }
}
