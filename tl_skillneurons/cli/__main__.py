from tl_skillneurons.cli import app

if __name__ == "__main__":
    app()
