"""Troubles with privacy, networks and names, clients and rounds, and hostile updates: answers and tests."""

from collections.abc import Mapping

ROUNDS = "tests/troubles/test_rounds.py::test_"
RUNNING = "tests/coordinator/federations/test_running.py::"
COLLECTING = "tests/coordinator/rounds/test_collecting.py::"
GONE = "tests/coordinator/rounds/test_gone.py::"
CREATING = "tests/coordinator/federations/test_creating.py::"
METRICS = "tests/coordinator/federations/test_metrics.py::test_"
STRANGERS = "tests/worker_agent/coordinator_api/test_foreign_responses.py::"
ADDRESSES = "tests/coordinator/test_addresses.py::"
NAMES = "tests/coordinator/test_names.py::test_"
ON_PATH = f"{ADDRESSES}TestBelowAPath::test_"
IPV6 = "tests/coordinator/cli/test_up.py::TestUp::test_an_agent_reaches_it_over_ipv6"
MISMATCH = f"{RUNNING}TestDescribe::test_weights_other_than_those_asked_for_are_out"

ROWS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "P01": (
        "right: a code, a place and numbers leave the node, no value and no path (FATE#5555)",
        (
            "tests/worker_agent/node/test_disclosure.py::TestAnAgent"
            "::test_tells_nothing_of_data_and_models_that_do_not_fit",
            "tests/worker_agent/node/test_disclosure.py::TestAnAgent"
            "::test_tells_nothing_of_an_exception_of_any_type_at_any_stage",
            "tests/worker_agent/node/test_disclosure.py::TestAnAgent"
            "::test_keeps_the_whole_text_in_its_own_log_under_the_reference",
            "tests/worker_agent/node/test_disclosure.py::TestTheProtocol::test_has_no_field_for_a_text_of_the_node",
        ),
    ),
    "N01": (
        "right: a wait that was cut is begun again (flower#775)",
        (
            "tests/worker_agent/coordinator_api/test_cut_waits.py::test_a_wait_that_a_proxy_ends_is_begun_again",
            "tests/faults/test_network.py::TestAFederation::test_ends_with_the_bits_of_the_undisturbed_run",
        ),
    ),
    "N02": (
        "right (opal#668)",
        (
            f"{ON_PATH}an_agent_is_enrolled_and_known",
            f"{ON_PATH}what_is_made_and_the_next_page_are_found",
            f"{ON_PATH}a_path_with_a_slash_too_many_is_no_redirect",
        ),
    ),
    "N03": (
        "refused: FAILED url, with where it leads (traefik#1819)",
        (
            f"{STRANGERS}TestDoctor::test_says_what_answers_and_what_to_change",
            f"{STRANGERS}TestRun::test_ends_where_it_could_not_begin",
            f"{STRANGERS}test_enrollment_ends_with_the_same_words",
            "tests/worker_agent/coordinator_api/test_hostile_responses.py::TestAnyOtherAnswer"
            "::test_that_is_a_redirect_is_named_as_one_and_not_followed",
        ),
    ),
    "N04": (
        "right: the result waits in the outbox",
        (f"{STRANGERS}TestRun::test_rests_while_it_runs_and_loses_nothing",),
    ),
    "N06": (
        "right: the coordinator's clock counts, doctor names the other",
        (
            "tests/worker_agent/test_command_line.py::TestDoctor::test_a_wrong_clock_is_named",
            "tests/worker_agent/coordinator_api/test_client.py::TestSigning"
            "::test_a_wrong_clock_is_set_by_the_coordinators_and_the_request_sent_anew",
            "tests/faults/test_outages.py::TestClocksTenMinutesOff::test_change_no_bit",
        ),
    ),
    "N07a": ("right; where a machine lacks IPv6, the refusal alone is run", (IPV6,)),
    "N07b": (
        "right: brackets in every printed address",
        (f"{ADDRESSES}test_a_url_has_an_ipv6_address_in_brackets", IPV6),
    ),
    "N08a": (
        "refused: one agent in a folder",
        ("tests/worker_agent/runtime/test_agent.py::TestStopping::test_a_data_folder_has_one_agent",),
    ),
    "N08b": (
        "refused: the agent that was there first ends, both sides are told (fedbiomed#1064)",
        (
            "tests/end_to_end/test_doubled.py"
            "::test_the_one_that_was_there_first_ends_and_the_owner_and_the_other_are_told",
            "tests/coordinator/workers/test_doubled.py::TestAnAgentThatWasReplaced"
            "::test_it_is_refused_and_the_newer_one_goes_on",
            "tests/coordinator/workers/test_doubled.py::TestRestarts"
            "::test_no_number_of_restarts_is_taken_for_a_second_agent",
        ),
    ),
    "N09": (
        "right in two organizations; refused in one: worker_name_taken (vantage6#96)",
        ("tests/coordinator/workers/test_workers.py::TestEnroll::test_a_name_is_given_once_in_an_organization",),
    ),
    "N10": (
        "read: any printable text (vantage6#186)",
        (f"{NAMES}a_printable_name_is_kept_as_it_is", f"{NAMES}what_cannot_be_seen_is_refused_by_its_pointer"),
    ),
    "N11": (
        "read up to 1,024 labels; refused: 422 at the labels beyond",
        ("tests/coordinator/web/test_body_limits.py::TestWhatIsMeantWell::test_a_thousand_long_labels_are_taken",),
    ),
    "N12": (
        "refused: both labels are named",
        (
            "tests/federated/test_task.py::test_labels_that_look_the_same_are_refused_and_both_named",
            "tests/federated/test_task.py::test_a_label_of_which_nothing_is_seen_is_refused",
        ),
    ),
    "C01": (
        "right: closed by those who remain (flower#1234)",
        (
            f"{GONE}TestARoundThatCollects::test_it_is_closed_at_once_by_those_who_remain",
            f"{RUNNING}TestClientsThatGo::test_the_job_of_a_client_that_left_is_lost_for_the_quorum",
        ),
    ),
    "C03": (
        "right: out with worker_revoked at once (FLIP#684)",
        (
            f"{GONE}TestARevokedWorker::test_its_jobs_and_clients_go_in_the_transaction_that_revokes_it",
            f"{GONE}TestARoundThatCollects::test_it_is_closed_at_once_by_those_who_remain",
        ),
    ),
    "C04": (
        "right: goes on with the quorum after the wait; else not_enough_clients (flower#4147)",
        (
            f"{ROUNDS}c04_after_the_wait_a_round_goes_on_with_those_who_are_there",
            f"{COLLECTING}TestQuorum::test_too_few_clients_fail_the_federation_with_the_reason",
        ),
    ),
    "C05": (
        "refused: round_closed, and the client takes part in the next round (NVFlare#5311)",
        (f"{ROUNDS}c05_a_result_that_comes_late_is_refused_and_its_client_takes_part_again",),
    ),
    "C06": (
        "refused: quorum_missed, with each client (flower#2515)",
        (
            f"{COLLECTING}TestQuorum::test_without_retries_left_the_federation_fails_with_the_reason",
            f"{GONE}TestARoundThatCollects::test_without_a_quorum_it_says_for_whom_it_waits",
        ),
    ),
    "C07": ("right", (f"{ROUNDS}c07_a_preparation_that_is_paused_at_once_is_made_after_the_pause",)),
    "C08": (
        "right; refused while it runs: federation_state",
        (
            "tests/coordinator/federations/test_ending.py::test_it_is_paused_cancelled_and_deleted",
            f"{CREATING}TestDelete::test_an_ended_federation_goes_with_its_rows_and_holds",
            f"{RUNNING}TestCancel::test_everything_open_is_taken_back_and_adapters_stay",
        ),
    ),
    "C09": (
        "right: both, side by side",
        (
            f"{ROUNDS}c09_two_federations_on_the_same_workers_keep_the_same_pace",
            f"{ROUNDS}c09_two_data_sets_of_one_worker_are_two_clients",
        ),
    ),
    "C10": (
        "refused: stopping_metric_unknown, stopping_without_evaluation; told in the round where none came",
        (
            f"{METRICS}a_metric_that_cannot_come_is_refused_where_it_stands",
            "tests/coordinator/rounds/test_evaluation.py::TestNothingMeasured::test_no_client_has_held_out_rows",
        ),
    ),
    "C11": (
        "refused: model_mismatch",
        (
            MISMATCH,
            "tests/end_to_end/test_federation.py::TestAFederation::test_other_weights_on_one_worker_are_named",
        ),
    ),
    "C12": (
        "refused: federation_state at a second start; without clients it says for whom it waits",
        (
            f"{RUNNING}TestStart::test_operators_start_and_viewers_do_not",
            f"{RUNNING}TestStart::test_a_started_federation_says_whom_it_waits_for",
        ),
    ),
    "X01": (
        "refused: update_not_finite, with the tensor (flower#2342)",
        (
            "tests/coordinator/rounds/test_bad_updates.py::TestOfBadNumbers"
            "::test_it_is_rejected_and_somebody_else_is_asked",
        ),
    ),
    "X02": (
        "refused: update_too_large; left out: norm_outlier (FedLD#1)",
        (
            f"{ROUNDS}x02_an_update_a_million_million_times_too_large_is_refused_by_its_tensor",
            "tests/coordinator/rounds/test_left_out.py::TestOutliers::test_one_far_from_the_others_is_left_out_by_name",
            "tests/coordinator/rounds/test_hostile_numbers.py::test_no_numbers_end_a_federation",
        ),
    ),
    "X03": (
        "right: left out by the agent; refused from others",
        (
            "tests/worker_agent/runtime/test_executor.py::TestWarmChild::test_a_number_that_json_cannot_carry_is_left_out",
            "tests/coordinator/jobs/test_lifecycle.py::TestSubmission"
            "::test_a_metric_that_is_not_finite_is_refused_by_name",
            "tests/coordinator/rounds/test_statistics.py::TestMetrics"
            "::test_what_is_not_finite_or_weighs_nothing_is_left_out",
        ),
    ),
}
