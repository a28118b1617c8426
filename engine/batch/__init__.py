"""A file of questions to a file of answers: many at once, over any number of ranks, and nothing is lost or asked twice.

`crew` leads: `handout` says which of the questions (`lines`) goes to which rank, `worker` asks a pipeline, on other
ranks over MPI (`world`), `answers` keeps what comes back with its `journal`. `request` reads a line under its
`terms`, of OpenAI's form with `openai_form`, of the short one with `short_form`.
"""
