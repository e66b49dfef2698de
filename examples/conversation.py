"""A conversation that streams, and how many tokens each turn read."""

import segue

session = segue.ChatSession(
    segue.load("smollm2"),
    instructions="Answer in one short sentence.",
    generation=segue.GenerationConfig(max_tokens=40),
)
for question in ("What is the capital of France?", "And of Italy?", "Which of them is larger?"):
    print(f"> {question}")
    with session.stream(question) as reply:
        for response in reply:
            print(response.text, end="", flush=True)
    cost = reply.usage
    print(f"\n  read {cost.fed_tokens} of {cost.prompt_tokens} tokens of the prompt")
