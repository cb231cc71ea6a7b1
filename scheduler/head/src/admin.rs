//! The local user's identity: how `ctl` on the scheduler's machine gets its first certificate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use motley_scheduler_core::authorize::Role;
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_link::{Authority, Identity, Validity, save_advertised_address, save_scheduler_address};

use crate::HeadError;

/// The key lies beside the authority's own: a shorter life would protect nothing.
const VALID: Duration = Duration::from_secs(365 * 86_400);

/// Renewed at a start when it would end within this.
const RENEW_BEFORE: Duration = Duration::from_secs(90 * 86_400);

const NAME: &str = "admin";

/// Makes `wanted` the admin's identity folder, or `own` (a folder of this scheduler) where `wanted` holds somebody
/// else's identity: that may be the only key to another fleet. Returns the folder that it is.
pub(crate) fn prepare<'a>(
    (wanted, own): (&'a Path, &'a Path),
    authority: &Authority,
    address: SocketAddr,
    advertised: &str,
) -> Result<&'a Path, HeadError> {
    let now = SystemTime::now();
    let folder = if is_of_another(wanted, authority) { own } else { wanted };
    if !is_good(folder, authority, now) {
        authority.issue(&principal(), Validity::starting(now, VALID))?.save(folder)?;
        tracing::info!(folder = %folder.display(), "admin identity written");
    }
    save_scheduler_address(folder, &local(address).to_string())?;
    save_advertised_address(folder, advertised)?;
    Ok(folder)
}

/// Whether overwriting the folder could lose something: an identity of another fleet, or of somebody else in this
/// one. Files that cannot be read count as such.
fn is_of_another(folder: &Path, authority: &Authority) -> bool {
    match Identity::load(folder) {
        Ok(identity) => {
            identity.authority() != authority.certificate() || *identity.principal() != principal()
        }
        Err(_) => ["key.pem", "certificate.pem"].iter().any(|name| folder.join(name).exists()),
    }
}

fn principal() -> Principal {
    Principal::User { name: NAME.to_owned(), role: Role::Admin }
}

fn is_good(folder: &Path, authority: &Authority, now: SystemTime) -> bool {
    let Ok(identity) = Identity::load(folder) else { return false };
    identity.authority() == authority.certificate()
        && *identity.principal() == principal()
        && identity.expires() > now + RENEW_BEFORE
}

/// What others dial unless configured: where it listens, by the machine's name when that is everywhere.
pub(crate) fn advertised(address: SocketAddr) -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        name if address.ip().is_unspecified() && !name.is_empty() => format!("{name}:{}", address.port()),
        _ => address.to_string(),
    }
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
    use motley_scheduler_link::{advertised_address, scheduler_address};

    #[test]
    fn identity_is_kept_while_it_will_do_and_replaced_when_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let authority = Authority::create().unwrap();
        let certificate = || std::fs::read(folder.join("certificate.pem")).unwrap();
        let start = |address: &str| {
            let prepared = prepare((folder, folder), &authority, address.parse().unwrap(), "host:1");
            assert_eq!(prepared.unwrap(), folder);
            scheduler_address(folder).unwrap()
        };
        assert_eq!(start("0.0.0.0:7443"), "127.0.0.1:7443");
        assert_eq!(advertised_address(folder).as_deref(), Some("host:1"));
        let first = certificate();
        assert_eq!(start("10.1.2.3:1"), "10.1.2.3:1");
        assert_eq!(certificate(), first, "a good identity is kept");
        let short = Validity::starting(SystemTime::now(), RENEW_BEFORE / 2);
        authority.issue(&principal(), short).unwrap().save(folder).unwrap();
        assert_eq!(start("[::]:9"), "[::1]:9");
        assert!(Identity::load(folder).unwrap().expires() > SystemTime::now() + RENEW_BEFORE, "renewed");
    }

    #[test]
    fn identity_of_somebody_else_is_never_touched() {
        let root = tempfile::tempdir().unwrap();
        let (wanted, own) = (root.path().join("identity"), root.path().join("admin"));
        let (ours, other) = (Authority::create().unwrap(), Authority::create().unwrap());
        let files = || {
            ["key.pem", "certificate.pem", "authority.pem", "scheduler.txt"]
                .map(|name| std::fs::read(wanted.join(name)).ok())
        };
        let address = "10.1.2.3:1".parse().unwrap();
        let anna = Principal::User { name: "anna".into(), role: Role::Viewer };
        let day = Validity::starting(SystemTime::now(), Duration::from_secs(86_400));
        for identity in [other.issue(&principal(), day).unwrap(), ours.issue(&anna, day).unwrap()] {
            identity.save(&wanted).unwrap();
            save_scheduler_address(&wanted, "10.9.9.9:9").unwrap();
            let before = files();
            assert_eq!(prepare((&wanted, &own), &ours, address, "host:1").unwrap(), own);
            assert_eq!(files(), before);
            assert_eq!(Identity::load(&own).unwrap().authority(), ours.certificate());
            assert_eq!(scheduler_address(&own).unwrap(), "10.1.2.3:1");
        }
        std::fs::write(wanted.join("certificate.pem"), "damaged").unwrap();
        let before = files();
        assert_eq!(prepare((&wanted, &own), &ours, address, "host:1").unwrap(), own);
        assert_eq!(files(), before);
    }
}
