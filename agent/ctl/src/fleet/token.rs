//! `ctl token create` and `ctl login`: how nodes and users become members.

use motley_scheduler_core::wire::client::{FromClient, ToClient, TokenGrant};
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_link::{Token, advertised_address, join, save_scheduler_address, scheduler_address};
use serde_json::json;

use super::{Fleet, identity_folder, unexpected};
use crate::arguments::{Common, LoginArguments, TokenCreateArguments};
use crate::failure::Failure;
use crate::output::Output;

pub async fn create(
    common: &Common,
    arguments: TokenCreateArguments,
    output: &Output,
) -> Result<(), Failure> {
    let fleet = Fleet::open(common).await?;
    let grants = match (arguments.user, arguments.role) {
        (Some(name), Some(role)) => TokenGrant::User { name, role: role.into() },
        _ => TokenGrant::Node,
    };
    let answer =
        fleet.ask(FromClient::CreateToken { grants: grants.clone(), valid: arguments.valid }).await?;
    let ToClient::Token { token, valid } = answer else { return Err(unexpected(&answer)) };
    let command = match &grants {
        TokenGrant::Node => "agent",
        TokenGrant::User { .. } => "login",
    };
    // The scheduler's own machine knows what others dial; elsewhere it is what this machine dials.
    let address = match advertised_address(fleet.identity()) {
        Some(address) => address,
        None => scheduler_address(fleet.identity())?,
    };
    output.talk(&format!("for one use within {valid}: ctl {command} --scheduler {address} --token TOKEN"));
    output.data(
        || token.clone(),
        || json!({ "token": token, "scheduler": address, "valid_seconds": valid.milliseconds / 1000 }),
    );
    Ok(())
}

pub async fn login(common: &Common, arguments: LoginArguments, output: &Output) -> Result<(), Failure> {
    let folder = identity_folder(common)?;
    if folder.join("certificate.pem").exists() {
        return Err(Failure::usage(format!("{} already holds an identity", folder.display()))
            .hint("name another folder with --identity, or remove that one first"));
    }
    let token: Token = arguments.token.parse()?;
    let name = std::env::var("USER").unwrap_or_else(|_| "user".to_owned());
    let identity = join(&arguments.scheduler, &token, &name).await?;
    let (user, role) = match identity.principal() {
        Principal::User { name, role } => (name.clone(), *role),
        Principal::Node { node } => {
            return Err(Failure::usage(format!("this token made node {node}, not a user"))
                .hint("it is used up now; make one with `ctl token create --user NAME --role ROLE`"));
        }
    };
    identity.save(&folder)?;
    save_scheduler_address(&folder, &arguments.scheduler)?;
    let role = format!("{role:?}").to_lowercase();
    output.data(
        || format!("{user}, {role}: identity in {}", folder.display()),
        || json!({ "user": user, "role": role, "identity": folder }),
    );
    Ok(())
}
