//! Whether a job has told what jobs tell, in that order.

/// What is wrong with all that a job has told from its creation to its end, if it has ended.
pub fn fault(told: &[String]) -> Option<String> {
    let mut state = "";
    for event in told {
        let word = event.split(' ').next().unwrap_or_default();
        let next: &[&str] = match state {
            "" => &["created"],
            "created" => &["running", "aborting", "null"],
            "running" => &["paused", "ready", "waiting", "aborting"],
            "paused" => &["running"],
            "ready" => &["READY"],
            "READY" | "ready again" => &["standby", "waiting", "aborting"],
            "standby" => &["ready"],
            "waiting" => &["pending", "aborting"],
            "pending" => &["PENDING", "COMPLETED", "aborting"],
            "PENDING" => &["COMPLETED", "aborting"],
            "aborting" => &["COMPLETED", "CANCELLED", "concluded"],
            "COMPLETED" | "CANCELLED" => &["concluded"],
            "concluded" => &["null"],
            _ => &[],
        };
        if word == "ERROR" && !["", "created", "concluded", "null"].contains(&state) {
            continue;
        }
        if !next.contains(&word) {
            return Some(format!("'{word}' after '{state}': {told:?}"));
        }
        state = match (state, word) {
            ("standby", "ready") => "ready again",
            _ => next.iter().find(|it| **it == word).copied().unwrap_or_default(),
        };
    }
    (state != "null").then(|| format!("it ends with '{state}': {told:?}"))
}

#[cfg(test)]
mod tests {
    use super::fault;

    fn is_right(told: &str) -> bool {
        let told: Vec<String> = told.split(", ").map(str::to_owned).collect();
        fault(&told).is_none()
    }

    #[test]
    fn runs_are_told_from_what_is_none() {
        let end = "waiting, pending, COMPLETED, concluded, null";
        assert!(is_right(&format!("created, running, paused, running, {end}")));
        let ready = "created, running, ready, READY, standby, ERROR write stop, ready";
        assert!(is_right(&format!("{ready}, {end}")));
        assert!(is_right(
            "created, running, ERROR read report, aborting, COMPLETED x, concluded, null"
        ));
        assert!(!is_right("created, running, waiting, pending, COMPLETED, null"));
        assert!(!is_right(
            "created, running, paused, waiting, pending, COMPLETED, concluded, null"
        ));
        assert!(!is_right("created, running, ready, READY"));
    }
}
