import typer


def write_name(model, adapter, folder, dialogues):
    (folder / "name.txt").write_text(model.name)
    return "read name.txt"


def shout(text: str = typer.Option(), times: int = 1):
    "Say a text in capitals."
    print("\n".join([text.upper()] * times))


app = typer.Typer()


@app.command()
def wave():
    "Say hello."
    print("hello")


greetings = typer.Typer(help="Greetings.")
greetings.command("bow")(wave)
greetings.command("nod")(wave)
app.add_typer(greetings, name="greet")

copycat = typer.Typer()
copycat.command("status")(wave)
copycat.command("wink")(wave)


def guess(what: "Unknown"):  # noqa: F821
    "Guess."


text = "shout"
