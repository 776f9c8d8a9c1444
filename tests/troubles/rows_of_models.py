"""Troubles with data, models, adapters, and what others open: answers and tests."""

from collections.abc import Mapping

DATA = "tests/troubles/test_data.py::test_"
MODELS = "tests/troubles/test_models.py::test_"
TRIAL = "tests/worker_agent/training/test_trial.py::"
ZOO = "tests/federated/export/test_zoo.py::test_what_is_written_is_what_was_evaluated"
PASSES = f"{TRIAL}TestTheZoo::test_passes_where_a_task_can_be_trained_and_is_refused_by_name_where_it_cannot"
LINEAR = f"{TRIAL}TestTheZoo::test_adapts_every_linear_map_under_a_name_of_its_own_or_says_why_not"
PREFIXES = f"{TRIAL}TestTheZoo::test_takes_a_prefix_or_says_before_any_round_that_it_cannot"
MENDS = f"{TRIAL}TestWhatAnOwnerMends::test_"
TARGETS = "tests/worker_agent/training/test_targets.py::test_"
EXPORTED = "tests/worker_agent/training/test_adapters.py::TestExport::test_"
PEFT_ALONE = f"{TARGETS}modules_ranks_and_alphas_are_those_that_peft_alone_finds"
FITS_NOTHING = f"{TARGETS}a_pattern_that_fits_nothing_is_named_with_its_field"
GOING_ON = "tests/coordinator/federations/test_going_on.py::"
INITIAL = "tests/federated/export/test_initial_adapter.py::test_"
ALGORITHMS = "tests/federated/algorithms/"

ROWS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "D01": (
        "right: a value that is a label's name is that label (mmaction2#2067)",
        (f"{DATA}d01_labels_of_two_nodes_are_the_same_classes_whatever_their_type",),
    ),
    "D03": (
        "refused: data_column_missing, with the row (pandas#10205)",
        (f"{DATA}d03_no_value_is_no_class_and_no_text",),
    ),
    "D05": (
        "refused: data_column_type (LlamaFactory#6878)",
        (f"{DATA}d05_lists_and_objects_are_no_text", f"{DATA}d05_bytes_are_no_text"),
    ),
    "D06": (
        "refused: data_missing, with the line (gpt-2-simple#214)",
        (f"{DATA}d06_a_csv_that_does_not_fit_its_header_is_refused_with_the_line",),
    ),
    "D08": ("read (orange3#2404)", (f"{DATA}d08_a_long_cell_is_read",)),
    "D09": ("read (datasets#8241)", (f"{DATA}d09_a_byte_order_mark_is_no_part_of_a_row",)),
    "D10": ("refused: data_empty", (f"{DATA}d10_a_file_of_no_bytes_is_empty",)),
    "D12": (
        "refused: data_text_empty, with the row (allennlp#4612)",
        (f"{DATA}d12_a_row_of_no_token_is_refused_with_its_line",),
    ),
    "D13": ("read: as the whole number that it is", (f"{DATA}d13_a_whole_float_is_its_integer",)),
    "D14": ("read: labels are compared in NFC", (f"{DATA}d14_labels_are_compared_in_one_form_of_unicode",)),
    "D15": ("read (unsloth#337)", (f"{DATA}d15_a_json_array_is_read",)),
    "D16": (
        "read: cells of a CSV stay words (datasets#4467)",
        (f"{DATA}d16_words_for_no_value_are_words_in_a_csv",),
    ),
    "D17": ("read", (f"{DATA}d17_lines_may_end_as_on_windows",)),
    "D18": (
        "refused: data_column_missing, with the columns seen",
        (f"{DATA}d18_another_separator_is_refused_with_the_columns_seen",),
    ),
    "D19": ("refused: data_missing, with the byte", (f"{DATA}d19_another_encoding_is_refused_with_the_byte",)),
    "D20": (
        "right: trained under the federation's labels",
        (f"{DATA}d20_one_class_and_repeated_rows_train_under_the_federations_labels",),
    ),
    "D21": (
        "right: metrics are left out, nothing is divided by none (flower#7645)",
        (f"{DATA}d21_without_held_out_rows_there_are_no_metrics",),
    ),
    "D22": (
        "read: encoded labels; refused: data_column_type, and folders of shards",
        (
            f"{DATA}d22_a_struct_is_refused_and_an_encoded_column_read",
            "tests/worker_agent/training/test_files.py::TestParquet::test_a_folder_of_shards_is_refused_by_name",
        ),
    ),
    "D23": (
        "right: something of the response is always learnt (trl#6668)",
        (f"{DATA}d23_a_prompt_and_a_response_that_fill_the_window_leave_something_to_learn",),
    ),
    "D24": ("right: an empty line", (f"{DATA}d24_an_input_without_a_value_is_an_empty_line",)),
    "D26": (
        "refused: 422 at the template's field (LlamaFactory#5503)",
        (
            f"{DATA}d26_a_template_that_is_none_is_refused_before_any_node_sees_it",
            "tests/coordinator/federations/test_creating.py::TestCreate"
            "::test_what_is_no_template_is_refused_where_it_stands",
        ),
    ),
    "D27": ("read: a column without any value is none", (f"{DATA}d27_a_second_text_that_no_row_has_is_none",)),
    "D28": ("right: the end is learnt (trl#1578)", (f"{DATA}d28_the_end_counts_where_it_also_pads",)),
    "D29": ("right: cut", (f"{DATA}d29_a_text_of_half_a_million_characters_is_cut",)),
    "D30": (
        "refused: data_column_missing, with the row",
        (f"{DATA}d30_a_response_without_a_value_is_refused_with_its_line",),
    ),
    "M01": (
        "right: factors of transposed maps are merged as they are used (peft#568)",
        ("tests/federated/export/test_merge.py::TestMerge::test_maps_that_are_stored_transposed", PEFT_ALONE, ZOO),
    ),
    "M02": ("right, or refused by name, for each architecture", (PASSES, LINEAR, ZOO)),
    "M03": (
        "refused: trainable_invalid, with what to name instead; new memory is not a number (unsloth#5345)",
        (LINEAR, f"{TRIAL}test_factors_of_another_rank_are_no_numbers_until_they_are_set"),
    ),
    "M04": (
        "right: the modules that were named, and the description lists them (TuFT#154)",
        (f"{MODELS}m04_of_experts_and_a_shared_one_the_description_names_what_is_adapted",),
    ),
    "M05": (
        "refused: model_not_causal (transformers#48745)",
        (f"{MENDS}an_encoder_that_is_to_write", PASSES),
    ),
    "M06": (
        "refused: model_incomplete, with a weight (transformers#17375)",
        (f"{MENDS}a_head_that_is_not_in_the_files", PASSES),
    ),
    "M08": (
        "refused: model_missing (tokenizers#351)",
        (f"{MENDS}a_tokenizer_without_words", f"{MENDS}words_that_the_tokenizer_does_not_know"),
    ),
    "M10": (
        "refused: model_missing",
        (
            "tests/worker_agent/training/test_model.py::TestAllowed::test_a_folder_with_pickled_weights_alone_is_refused",
        ),
    ),
    "M11": (
        "refused: model_missing, or read as the library's own; the code is never run",
        (f"{MODELS}m11_code_in_a_models_folder_is_not_run",),
    ),
    "M12": ("read", (f"{MODELS}m12_files_that_do_not_name_their_format_are_read", PASSES, ZOO)),
    "M15": (
        "right: cut to what the model reads (transformers#10010)",
        (f"{MODELS}m15_a_text_longer_than_the_model_reads_is_cut",),
    ),
    "M16": (
        "refused: tokenizer_mismatch, with both numbers (transformers#12763)",
        (f"{MENDS}more_tokens_than_embeddings", PASSES),
    ),
    "M18": (
        "right: one padding id wherever a model reads it; refused: model_padding (transformers#36755)",
        (PASSES,),
    ),
    "M19": (
        "right: padded on the right whatever the tokenizer says (transformers#30004)",
        (f"{MODELS}m19_a_tokenizer_that_pads_on_the_left_changes_nothing",),
    ),
    "M20": ("right: the same alone and in a batch (transformers#35352)", (PASSES,)),
    "M21": (
        "right: older names are found; a tensor without a place is refused (candle#1887)",
        (ZOO, "tests/federated/export/test_merge.py::TestRefusals::test_a_module_that_the_base_does_not_have"),
    ),
    "M22": ("refused: trainable_invalid (peft#2881)", (PREFIXES,)),
    "M22a": (
        "right: to the bit in PEFT (peft#2881)",
        (f"{MODELS}m22a_a_prefix_has_the_width_of_the_models_own_heads", PREFIXES),
    ),
    "M23a": (
        "right: a head of the federation's own (sentence-transformers#3980)",
        ("tests/worker_agent/training/test_adapters.py::TestStarts::test_a_head_in_the_files_starts_anew", ZOO),
    ),
    "M24": (
        "right: saved and opened (peft#577)",
        (f"{MODELS}m24_a_head_of_any_name_is_trained_saved_and_opened", ZOO),
    ),
    "M25": ("refused: model_not_finite, before any round (verl#785)", (f"{MENDS}a_weight_that_is_not_finite",)),
    "M26": (
        "right: the same gradients",
        (
            f"{MODELS}m26_recomputed_activations_change_no_gradient",
            "tests/worker_agent/training/test_session.py::TestLoss::test_checkpointed_activations_change_no_gradient",
        ),
    ),
    "M27": (
        "right on a processor; on a GPU the same code, which is not run here (diffusers#9628)",
        (f"{MODELS}m27_narrow_numbers_train_as_wide_ones",),
    ),
    "M28": (
        "right; refused with the modules seen where layers cannot be told apart",
        (
            f"{MODELS}m28_a_method_that_needs_one_row_of_layers_refuses_a_model_with_two",
            f"{ALGORITHMS}fedpeptao/test_real_models.py::test_peft_opens_the_adapter_as_the_model_of_the_shared_view",
            f"{ALGORITHMS}fibecfed/test_real_models.py"
            "::test_peft_opens_the_global_adapter_of_a_model_with_a_head_of_two_maps",
            f"{ALGORITHMS}flexlora/test_real_models.py::test_peft_opens_the_adapter_as_the_model_that_was_evaluated",
            "tests/worker_agent/training/test_cloze.py::TestSession"
            "::test_peft_opens_the_adapter_over_the_masked_language_model",
        ),
    ),
    "L01": ("right: output and embedding are written apart where they differ (peft#2018)", (ZOO,)),
    "L02": ("right: the configuration says whether they are one (transformers#45156)", (ZOO,)),
    "L03": ("right (peft#3306)", (f"{MODELS}l03_trained_biases_are_saved", ZOO)),
    "L04a": (
        "right: patterns mean here what they mean in PEFT, or are refused (peft#3582)",
        (
            PEFT_ALONE,
            "tests/federated/export/test_merge.py::TestMerge::test_a_decoder",
            "tests/federated/test_patterns.py::test_what_is_no_pattern_is_refused",
        ),
    ),
    "L05": (
        "read: as a pattern with stars; refused: 422 at its field (coala#169)",
        (
            "tests/coordinator/federations/test_creating.py::TestCreate"
            "::test_what_is_no_pattern_is_refused_where_it_stands",
            f"{EXPORTED}peft_opens_a_trained_adapter_with_the_same_logits",
            "tests/federated/test_patterns.py::test_any_text_is_refused_or_matches_without_an_error",
        ),
    ),
    "L07a": ("right: a head is no target (peft#2027)", (LINEAR, ZOO)),
    "L07b": ("right: what is saved in full is no target (peft#2033)", (LINEAR,)),
    "L08": ("refused: trainable_invalid, with the entry (peft#577)", (FITS_NOTHING,)),
    "L09a": (
        "right, or refused: trainable_invalid (peft#2155)",
        (
            f"{MODELS}l09a_layers_are_those_that_are_named_in_a_model_of_experts_too",
            PEFT_ALONE,
            FITS_NOTHING,
        ),
    ),
    "L10": (
        "refused: 422 at the field (LlamaFactory#6656)",
        (f"{MODELS}l10_what_is_not_offered_is_refused_by_its_field",),
    ),
    "L11": ("right", (f"{MODELS}l11_a_rank_above_the_width_trains_and_opens",)),
    "L12": ("right (peft#1300)", (ZOO,)),
    "L13": (
        "right: losses fall and stay finite (flower#1060)",
        (
            "tests/troubles/test_rounds.py::test_l13_a_server_optimizer_learns_and_stays_finite_for_five_rounds",
            f"{ALGORITHMS}fedavg/test_server.py::TestAggregate"
            "::test_adaptive_optimizers_give_the_numbers_of_the_script",
        ),
    ),
    "L14": (
        "right: factors are scaled, the model stays the same (sd-scripts#988)",
        (
            f"{INITIAL}the_first_evaluation_is_the_last_one_of_the_adapter",
            f"{GOING_ON}TestAsItWas::test_another_scale_begins_with_factors_of_the_same_product",
        ),
    ),
    "L16": (
        "refused: 422 when it is created, or model_mismatch when a node describes (peft#1932)",
        (
            f"{GOING_ON}TestRefused::test_what_the_two_definitions_say_is_refused_at_once",
            f"{GOING_ON}TestTheSameWeights::test_a_client_with_others_is_out",
        ),
    ),
    "A01": (
        "right: PEFT opens each (peft#1025)",
        (ZOO, f"{EXPORTED}peft_opens_a_trained_adapter_with_the_same_logits"),
    ),
    "A02": ("right: padding id and class of what was trained (infinity#670)", (ZOO,)),
    "A04": (
        "right in part: the alias stays, the digest of the weights stands beside it (peft#309); no hub is asked here",
        (f"{MODELS}a04_an_adapter_says_the_digest_of_its_base",),
    ),
    "A05": (
        "right: factors alone, nothing saved in full (vllm#9280); no server is run here",
        (f"{MODELS}a05_a_language_models_adapter_is_of_factors_alone",),
    ),
}
