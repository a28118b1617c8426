"""Many questions to a file of answers: any number of ranks at once, and nothing is lost or asked twice.

`crew` leads: `handout` says which of the questions (`lines`) goes to which rank, `worker` asks a pipeline, on other
ranks over MPI (`world`), where those that fall silent are left (`hearing`); `answers` keeps what comes back with its
`journal`. What lines mean is a reader's (`terms`): `request` reads those of a file, of OpenAI's form with
`openai_form`, of the short one with `short_form`; `engine.evaluation.run` those of a benchmark.
"""
