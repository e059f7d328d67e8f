"""The unmodified `openai` package against a running `gpt4roi serve`.

    python openai_client.py http://127.0.0.1:8080/v1 KEY docs/example.png

The server has to serve the embedded model, with KEY. Fails if anything is not as OpenAI's own service has it.
"""

import base64
import sys

import openai

OCTOPUS, BREAD = [8, 14, 54, 59], [109, 0, 181, 59]


def main(base_url, key, picture):
    client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)
    with open(picture, "rb") as file:
        url = "data:image/png;base64," + base64.b64encode(file.read()).decode()

    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).owned_by == "gpt4roi"

    asking = {"model": model.id, "messages": messages(url, "What is <region2>?"), "extra_body": {"regions": regions()}}
    answer = client.chat.completions.create(**asking)
    assert answer.choices[0].message.content == "A loaf of bread.", answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.regions[0] == {"id": "region1", "box": OCTOPUS, "coords": "pixel", "origin": "given"}
    assert 0.5 < answer.choices[0].message.probability < 1, answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.region_tokens == 1

    check_streams(client, asking)
    check_errors(client, base_url, asking)
    print(f"openai {openai.__version__} for Python: as with OpenAI's own service")


def regions():
    return [{"id": "region1", "box": OCTOPUS}, {"id": "region2", "box": BREAD}]


def messages(url, text):
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def check_streams(client, asking):
    chunks = list(client.chat.completions.create(**asking, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "A loaf of bread.", text
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
    assert chunks[-2].choices[0].finish_reason == "stop"

    # The helper puts the pieces together.
    with client.chat.completions.stream(**asking) as stream:
        kinds = {event.type for event in stream}
        whole = stream.get_final_completion()
    assert "content.delta" in kinds and "content.done" in kinds, kinds
    assert whole.choices[0].message.content == "A loaf of bread."
    assert [region["id"] for region in whole.choices[0].message.regions] == ["region1", "region2"]
    assert 0.5 < whole.choices[0].message.probability < 1, whole

    # Whoever goes away in the middle is not waited for.
    with client.chat.completions.create(**asking, stream=True) as stream:
        next(iter(stream))


def check_errors(client, base_url, asking):
    create = client.chat.completions.create
    outside = {"regions": [{"box": [0, 0, 5000, 10]}]}
    refused(openai.UnprocessableEntityError, "invalid_region", "regions[0].box", create, **asking | {"extra_body": outside})
    refused(openai.BadRequestError, "unknown_region", None, create, **asking | {"extra_body": {}})
    refused(openai.BadRequestError, "unsupported_parameter", "n", create, **asking, n=2)
    refused(openai.BadRequestError, "invalid_value", "temperature", create, **asking, temperature=1.0e6)
    refused(openai.NotFoundError, "model_not_found", "model", create, **asking | {"model": "gpt-4o"})
    stranger = openai.OpenAI(base_url=base_url, api_key="wrong", max_retries=0)
    refused(openai.AuthenticationError, "invalid_api_key", None, stranger.models.list)
    refused(openai.APIStatusError, "body_too_large", None, create, **asking | {"messages": messages("x" * (33 << 20), "?")})


def refused(kind, code, param, call, **arguments):
    try:
        call(**arguments)
    except kind as error:
        assert error.code == code, (error.code, code)
        assert param is None or error.param == param, (error.param, param)
        assert "error" not in error.body and error.body["message"], error.body
        return
    except openai.APIConnectionError:
        # A server that refuses a body before it has come may close while the client still sends.
        assert code == "body_too_large", code
        return
    raise AssertionError(f"{code} was expected")


if __name__ == "__main__":
    main(*sys.argv[1:])
